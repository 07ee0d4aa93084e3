//! Quantised checkpoints whose parts do not belong together, or whose scales no model has.

use serde_json::json;

use super::case::{Case, Stage};
use super::sample::{CONFIG, Sample, Tensor, WEIGHTS, container, tensors};

const Q: &str = "model.layers.0.self_attn.q_proj";

pub(crate) fn cases() -> Vec<Case> {
    let case = |label: &str, stage, part: &str, change: fn(&mut Tensor), what: &str| {
        let name = format!("{Q}.{part}");
        let sample = sample(|all| change(all.iter_mut().find(|t| t.name == name).unwrap()));
        let words = [WEIGHTS, "tensor `", &format!("{Q}."), what];
        Case::new(format!("quantised: {label}"), stage, sample, &words)
    };
    use Stage::{Load, Open};
    vec![
        case(
            "words of other outputs",
            Open,
            "qweight",
            |t| resize(t, &[2, 4]),
            "qzeros`: is I32 of shape [1, 2]",
        ),
        case("half a word", Open, "qweight", |t| resize(t, &[2, 6]), "a multiple of 4"),
        case("no words", Open, "qweight", |t| resize(t, &[0, 8]), "from 1 to 1048576"),
        case(
            "zeros of other outputs",
            Open,
            "qzeros",
            |t| resize(t, &[1, 1]),
            "I32 of shape [1, 2] is right",
        ),
        case("zeros as floats", Open, "qzeros", |t| t.dtype = "F32".to_owned(), "is F32"),
        case("scales of two groups", Open, "scales", |t| resize(t, &[2, 8]), "of shape [1, 8] is right"),
        case("one input too few", Open, "g_idx", |t| resize(t, &[7]), "I32 of shape [8] is right"),
        case("a group that is not there", Open, "g_idx", |t| t.data[4] = 1, "element 1 is 1; from 0 to 0"),
        case("a negative group", Open, "g_idx", |t| t.data.fill(0xff), "element 0 is -1"),
        case("scale 0", Load, "scales", |t| t.data[..2].fill(0), "output 0, group 0 is 0"),
        case("scale NaN", Load, "scales", |t| t.data[14..].copy_from_slice(&[0, 0x7e]), "is NaN"),
        case("scale infinite", Load, "scales", |t| t.data[2..4].copy_from_slice(&[0, 0xfc]), "is -inf"),
        case("a zero off the middle", Load, "qzeros", |t| t.data[5] = 3, "output 5, group 0 has the zero 4"),
    ]
}

/// A checkpoint in GPTQ's layout with 8 bits and a group a row.
pub(crate) fn good() -> Sample {
    sample(|_| ())
}

fn sample(change: impl FnOnce(&mut Vec<Tensor>)) -> Sample {
    let mut all = Vec::new();
    for tensor in tensors() {
        match tensor.name.strip_suffix(".weight").filter(|prefix| prefix.ends_with("_proj")) {
            Some(prefix) => all.extend(gptq(prefix, &tensor.shape)),
            None => all.push(tensor),
        }
    }
    change(&mut all);
    let quantisation = json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": true});
    Sample::hf().fields(CONFIG, json!({"quantization_config": quantisation})).text(WEIGHTS, container(&all))
}

fn gptq(prefix: &str, shape: &[usize]) -> Vec<Tensor> {
    let &[outputs, inputs] = shape else { unreachable!("a projection is a matrix") };
    let part = |part: &str, dtype: &str, shape: &[usize], data: Vec<u8>| Tensor {
        name: format!("{prefix}.{part}"),
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
        data,
    };
    vec![
        part("qweight", "I32", &[inputs / 4, outputs], (0..inputs * outputs).map(|i| i as u8).collect()),
        part("qzeros", "I32", &[1, outputs / 4], vec![127; outputs]),
        part("scales", "F16", &[1, outputs], [0, 0x14].repeat(outputs)),
        part("g_idx", "I32", &[inputs], vec![0; 4 * inputs]),
    ]
}

/// The same numbers in another shape, as many as it has.
fn resize(tensor: &mut Tensor, shape: &[usize]) {
    let size = tensor.data.len() / tensor.shape.iter().product::<usize>();
    tensor.data.resize(size * shape.iter().product::<usize>(), 0);
    tensor.shape = shape.to_vec();
}
