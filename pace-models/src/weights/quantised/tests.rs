//! Matrices packed by hand in the layouts of each method, read back; what is refused is in `refused`.

mod refused;

use half::f16;
use pace_kernels::WeightFormat::{Int4, Int4Min, Int8, Int8Group, Int8Min};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::weights::codes::{dequantise, groups, join};

/// A tensor to be: name, type, shape, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// A matrix of integers, as it is meant.
#[derive(Clone)]
struct Matrix {
    outputs: usize,
    inputs: usize,
    bits: usize,
    group: usize,
    /// `[outputs, inputs]`.
    codes: Vec<u8>,
    /// `[outputs, groups]`.
    scales: Vec<f16>,
    /// `[outputs, groups]`.
    zeros: Vec<u8>,
    /// The group of each input.
    order: Vec<usize>,
}

impl Matrix {
    /// Every code and many scales; zeros in the middle or all over.
    fn new((outputs, inputs): (usize, usize), bits: usize, group: usize, symmetric: bool) -> Self {
        let most = (1 << bits) - 1;
        let groups = inputs / group;
        let zero = |i: usize| if symmetric { 1 << (bits - 1) } else { (i * 11 + 3) & most };
        Self {
            outputs,
            inputs,
            bits,
            group,
            codes: (0..outputs * inputs).map(|i| ((i * 7 + i / inputs) & most) as u8).collect(),
            scales: (0..outputs * groups).map(|i| f16::from_f32((i % 37 + 1) as f32 * 0.003)).collect(),
            zeros: (0..outputs * groups).map(|i| zero(i) as u8).collect(),
            order: (0..inputs).map(|input| input / group).collect(),
        }
    }

    fn groups(&self) -> usize {
        self.inputs / self.group
    }

    fn weights(&self) -> Vec<f32> {
        let weight = |i: usize| {
            let at = i / self.inputs * self.groups() + self.order[i % self.inputs];
            (i32::from(self.codes[i]) - i32::from(self.zeros[at])) as f32 * self.scales[at].to_f32()
        };
        (0..self.codes.len()).map(weight).collect()
    }

    /// The words of a line of numbers, the first one in the low bits.
    fn words(&self, line: &[u8], order: &[usize]) -> Vec<u8> {
        let word = |numbers: &[u8]| {
            let bits = order
                .iter()
                .enumerate()
                .map(|(place, &at)| u32::from(numbers.get(at).copied().unwrap_or(0)) << (self.bits * place));
            bits.sum::<u32>().to_le_bytes()
        };
        line.chunks(32 / self.bits).flat_map(word).collect()
    }

    fn transposed<T: Copy>(numbers: &[T], columns: usize) -> Vec<T> {
        (0..columns).flat_map(|c| numbers.iter().skip(c).step_by(columns).copied()).collect()
    }

    /// What AutoGPTQ writes; `offset` is what is taken from the zeros.
    fn gptq(&self, prefix: &str, offset: u8) -> Vec<Tensor> {
        let (per, mask) = (32 / self.bits, u8::MAX >> (8 - self.bits));
        let in_order: Vec<usize> = (0..per).collect();
        // Words along the inputs, which are then transposed as words.
        let words: Vec<u8> =
            self.codes.chunks(self.inputs).flat_map(|row| self.words(row, &in_order)).collect();
        let words = Self::transposed(words.as_chunks::<4>().0, self.inputs / per).concat();
        let zeros: Vec<u8> = self.zeros.iter().map(|zero| zero.wrapping_sub(offset) & mask).collect();
        let zeros = Self::transposed(&zeros, self.groups());
        let zeros = zeros.chunks(self.outputs).flat_map(|line| self.words(line, &in_order)).collect();
        let order = self.order.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect();
        vec![
            (format!("{prefix}.qweight"), "I32", vec![self.inputs / per, self.outputs], words),
            (format!("{prefix}.qzeros"), "I32", vec![self.groups(), self.outputs / per], zeros),
            self.column_scales(prefix),
            (format!("{prefix}.g_idx"), "I32", vec![self.inputs], order),
        ]
    }

    /// What AutoAWQ writes.
    fn awq(&self, prefix: &str) -> Vec<Tensor> {
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        let lines = |numbers: &[u8], columns: usize| -> Vec<u8> {
            let lines = Self::transposed(numbers, columns);
            lines.chunks(self.outputs).flat_map(|line| self.words(line, &order)).collect()
        };
        let (words, zeros) = (lines(&self.codes, self.inputs), lines(&self.zeros, self.groups()));
        vec![
            (format!("{prefix}.qweight"), "I32", vec![self.inputs, self.outputs / 8], words),
            (format!("{prefix}.qzeros"), "I32", vec![self.groups(), self.outputs / 8], zeros),
            self.column_scales(prefix),
        ]
    }

    fn column_scales(&self, prefix: &str) -> Tensor {
        let scales = Self::transposed(&self.scales, self.groups());
        let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        (format!("{prefix}.scales"), "F16", vec![self.groups(), self.outputs], bytes)
    }

    /// What compressed-tensors writes, of 8 bits as bytes if not `packed`.
    fn compressed(&self, prefix: &str, packed: bool, scale_shape: &[usize]) -> Vec<Tensor> {
        let scales = self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = (format!("{prefix}.weight_scale"), "F16", scale_shape.to_vec(), scales);
        let zero_point = format!("{prefix}.weight_zero_point");
        if !packed {
            let signed = |codes: &[u8]| codes.iter().map(|code| code ^ 0x80).collect();
            return vec![
                (format!("{prefix}.weight"), "I8", vec![self.outputs, self.inputs], signed(&self.codes)),
                (zero_point, "I8", scale_shape.to_vec(), signed(&self.zeros)),
                scales,
            ];
        }
        let per = 32 / self.bits;
        let in_order: Vec<usize> = (0..per).collect();
        let words = self.codes.chunks(self.inputs).flat_map(|row| self.words(row, &in_order)).collect();
        let shape = [self.outputs, self.inputs].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
        let columns = self.inputs.div_ceil(per);
        // Words along the outputs, which are then transposed as words.
        let zeros = Self::transposed(&self.zeros, self.groups());
        let zeros: Vec<u8> =
            zeros.chunks(self.outputs).flat_map(|line| self.words(line, &in_order)).collect();
        let lines = self.outputs.div_ceil(per);
        let zeros = Self::transposed(zeros.as_chunks::<4>().0, lines).concat();
        vec![
            (format!("{prefix}.weight_packed"), "I32", vec![self.outputs, columns], words),
            (format!("{prefix}.weight_shape"), "I64", vec![2], shape),
            (zero_point, "I32", vec![lines, self.groups()], zeros),
            scales,
        ]
    }
}

/// A checkpoint with this `quantization_config` and these tensors.
fn open(quantization: &Value, tensors: &[Tensor]) -> (TempDir, Result<QuantisedSource, ModelError>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::from(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let config = json!({"quantization_config": quantization}).to_string();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let source = QuantisedSource::open(dir.path(), &HfConfig::read(dir.path()).unwrap());
    (dir, source)
}

fn gptq_config(bits: usize, group: i64, symmetric: bool) -> Value {
    json!({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": false})
}

fn awq_config(group: i64) -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm"})
}

fn compressed_config(layout: &str, bits: usize) -> Value {
    compressed(layout, bits, true)
}

fn compressed(layout: &str, bits: usize, symmetric: bool) -> Value {
    let weights = json!({"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel",
        "dynamic": false, "group_size": null, "actorder": null});
    json!({"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "output_activations": null}}})
}

fn ordinary(name: &str) -> Tensor {
    (name.to_owned(), "F16", vec![2], vec![0, 0x3c, 0, 0x40])
}

/// Rows of a matrix in `format`, as numbers in the order of the model's inputs.
fn rows(
    source: &QuantisedSource,
    first: usize,
    (n, k): (usize, usize),
    format: WeightFormat,
) -> Result<Vec<f32>, ModelError> {
    let per_row = groups(format, k);
    let (mut codes, mut scales) = (vec![0; n * k], vec![f32::NAN; n * per_row]);
    let mut mins = vec![f32::NAN; if format.has_min() { n * per_row } else { 0 }];
    let mut out = vec![f32::NAN; n * k];
    let mut rows = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
    source.read_codes("a.weight", first, format, &mut rows)?;
    dequantise(format, k, &rows, &mut out);
    if let Some(order) = source.input_order("a.weight") {
        for row in out.chunks_exact_mut(k) {
            let sorted = row.to_vec();
            order.as_slice().iter().zip(sorted).for_each(|(&input, weight)| row[input as usize] = weight);
        }
    }
    Ok(out)
}

/// Checks that `a.weight` of a checkpoint is `matrix`, in f32 and in `format`, row by row and as a whole.
fn check(config: &Value, tensors: &[Tensor], matrix: &Matrix, format: Option<WeightFormat>, what: &str) {
    let tensors = [tensors, &[ordinary("norm.weight"), ordinary("a.bias")]].concat();
    let (_dir, source) = open(config, &tensors);
    let source = source.unwrap();
    let names: HashSet<_> = source.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, HashSet::from(["a.weight", "norm.weight", "a.bias"]), "{what}");
    let (n, k) = (matrix.outputs, matrix.inputs);
    assert_eq!(source.info("a.weight").unwrap().shape, [n, k], "{what}");
    let mut two = [0.0; 2];
    source.read_f32("a.bias", 0, &mut two).unwrap();
    assert_eq!((two, source.codes("a.bias")), ([1.0, 2.0], None));
    let want = matrix.weights();
    for (first, count) in [(0, n), (n - 1, 1), (n / 3, n / 2), (n, 0)] {
        let part = &want[first * k..(first + count) * k];
        let mut out = vec![f32::NAN; count * k];
        source.read_f32("a.weight", first * k, &mut out).unwrap();
        assert!(out == part, "{what}: {count} rows from {first}");
        // f16 times integers of 8 bits, and their sums, are exact in f32.
        let wide = format.map(|own| (own, join(own, Int8Min(16)).unwrap()));
        for format in wide.into_iter().flat_map(|(own, wide)| [own, wide]) {
            let out = rows(&source, first, (count, k), format).unwrap();
            assert!(out == part, "{what}, {format}: {count} rows from {first}");
        }
    }
    assert_eq!(source.codes("a.weight"), format, "{what}");
    if format.is_none() {
        let message = rows(&source, 0, (1, k), Int8Group(16)).unwrap_err().to_string();
        assert!(message.contains("tensor `a.weight`: is stored in groups"), "{message}");
    }
}

#[test]
fn gptq_in_every_kind() {
    let cases = [
        ((72, 256), 4, 128, true, Int4(128)),
        ((72, 256), 4, 64, false, Int4Min(64)),
        ((8, 96), 4, 32, true, Int4(32)),
        ((8, 96), 4, 96, false, Int4Min(32)),
        ((16, 192), 4, 192, true, Int4(64)),
        ((8, 80), 4, 80, true, Int4(32)),
        ((8, 96), 4, 48, true, Int8Group(16)),
        ((8, 96), 4, 48, false, Int8Min(16)),
        ((12, 256), 8, 128, true, Int8Group(128)),
        ((12, 256), 8, 32, false, Int8Min(32)),
        ((12, 88), 8, 88, true, Int8),
        ((12, 1024), 8, 512, false, Int8Min(256)),
    ];
    for (shape, bits, group, symmetric, format) in cases {
        let matrix = Matrix::new(shape, bits, group, symmetric);
        let size = if group == shape.1 { -1 } else { group as i64 };
        let what = format!("{bits} bits, groups of {group}, {symmetric}");
        let mut config = gptq_config(bits, size, symmetric);
        check(&config, &matrix.gptq("a", 1), &matrix, Some(format), &what);
        config["checkpoint_format"] = json!("gptq_v2");
        check(&config, &matrix.gptq("a", 0), &matrix, Some(format), &what);
        // Groups of neighbours need not be listed.
        check(&config, &matrix.gptq("a", 0)[..3], &matrix, Some(format), &what);
    }
}

#[test]
fn gptq_in_act_order_is_sorted_by_group() {
    for (bits, symmetric, format) in
        [(4, true, Int4(32)), (4, false, Int4Min(32)), (8, true, Int8Group(32)), (8, false, Int8Min(32))]
    {
        let mut matrix = Matrix::new((16, 128), bits, 32, symmetric);
        matrix.order = (0..128).map(|input| input * 7 % 4).collect();
        let mut config = gptq_config(bits, 32, symmetric);
        check(&config, &matrix.gptq("a", 1), &matrix, Some(format), "act-order");
        config["desc_act"] = json!(true);
        check(&config, &matrix.gptq("a", 1), &matrix, Some(format), "act-order");
        // Groups that differ in size are no groups of a format.
        matrix.order[3] = 0;
        check(&config, &matrix.gptq("a", 1), &matrix, None, "uneven groups");
        // In order after all.
        let matrix = Matrix::new((16, 128), bits, 32, symmetric);
        let (_dir, source) = open(&config, &matrix.gptq("a", 1));
        let source = source.unwrap();
        assert_eq!((source.codes("a.weight"), source.input_order("a.weight")), (Some(format), None));
    }
}

#[test]
fn awq_of_many_shapes() {
    for (shape, group) in [((72, 256), 128), ((8, 64), 32), ((136, 192), 64), ((16, 160), 160)] {
        let matrix = Matrix::new(shape, 4, group, false);
        let size = if group == shape.1 { -1 } else { group as i64 };
        let format = Int4Min(if group == 160 { 32 } else { group });
        check(&awq_config(size), &matrix.awq("a"), &matrix, Some(format), &format!("groups of {group}"));
    }
    let matrix = Matrix::new((8, 64), 4, 32, false);
    let old = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"});
    check(&old, &matrix.awq("a"), &matrix, Some(Int4Min(32)), "GEMM");
}

#[test]
fn compressed_tensors_in_every_kind() {
    let bytes = compressed_config("int-quantized", 8);
    for (group, shape, format) in
        [(96, vec![12, 1], Int8), (96, vec![12], Int8), (32, vec![12, 3], Int8Group(32))]
    {
        let matrix = Matrix::new((12, 96), 8, group, true);
        check(&bytes, &matrix.compressed("a", false, &shape), &matrix, Some(format), &format!("{shape:?}"));
    }
    let mut one = Matrix::new((12, 96), 8, 96, true);
    one.scales.truncate(1);
    one.zeros.truncate(1);
    for shape in [&[1][..], &[], &[1, 1]] {
        let tensors = one.compressed("a", false, shape);
        let matrix = Matrix { scales: vec![one.scales[0]; 12], zeros: vec![128; 12], ..one.clone() };
        check(&bytes, &tensors, &matrix, Some(Int8), "one scale");
    }
    for (bits, group, format) in [(4, 32, Int4(32)), (4, 96, Int4(32)), (8, 48, Int8Group(16)), (8, 96, Int8)]
    {
        let matrix = Matrix::new((10, 96), bits, group, true);
        let tensors = matrix.compressed("a", true, &[10, 96 / group]);
        check(&compressed_config("pack-quantized", bits), &tensors, &matrix, Some(format), "packed");
    }
    // Rows that end within a word.
    let matrix = Matrix::new((5, 44), 4, 44, true);
    let tensors = matrix.compressed("a", true, &[5, 1]);
    check(&compressed_config("pack-quantized", 4), &tensors, &matrix, Some(Int4(32)), "part of a word");
}

#[test]
fn compressed_tensors_with_zero_points() {
    for (outputs, bits, group, format) in
        [(13, 4, 32, Int4Min(32)), (16, 4, 96, Int4Min(32)), (7, 8, 32, Int8Min(32)), (9, 8, 96, Int8Min(32))]
    {
        let matrix = Matrix::new((outputs, 96), bits, group, false);
        let shape = [outputs, 96 / group];
        let what = format!("{bits} bits, {shape:?}");
        let config = compressed("pack-quantized", bits, false);
        check(&config, &matrix.compressed("a", true, &shape), &matrix, Some(format), &what);
        if bits == 8 {
            let config = compressed("int-quantized", 8, false);
            check(&config, &matrix.compressed("a", false, &shape), &matrix, Some(format), &what);
        }
    }
    // A configuration that has matrices with zero points and without.
    let matrix = Matrix::new((8, 64), 8, 32, true);
    let mut tensors = matrix.compressed("a", false, &[8, 2]);
    tensors.retain(|tensor| !tensor.0.ends_with("zero_point"));
    let (mut mixed, config) = (compressed("int-quantized", 8, true), compressed("int-quantized", 8, false));
    mixed["config_groups"]["group_1"] = config["config_groups"]["group_0"].clone();
    check(&mixed, &tensors, &matrix, Some(Int8Group(32)), "no zero points");
    let mut one = Matrix::new((8, 64), 8, 64, false);
    one.scales.truncate(1);
    one.zeros.truncate(1);
    let matrix = Matrix { scales: vec![one.scales[0]; 8], zeros: vec![one.zeros[0]; 8], ..one.clone() };
    check(&config, &one.compressed("a", false, &[1]), &matrix, Some(Int8Min(64)), "one zero point");
    check(&mixed, &one.compressed("a", false, &[1]), &matrix, Some(Int8Min(64)), "zero points");
}

#[test]
fn zero_points_of_0_may_be_stored_in_bytes() {
    let matrix = Matrix::new((8, 64), 4, 32, true);
    let mut tensors = matrix.compressed("a", true, &[8, 2]);
    let zeros = tensors.iter_mut().find(|tensor| tensor.0.ends_with("zero_point")).unwrap();
    (zeros.1, zeros.2, zeros.3) = ("I8", vec![8, 2], vec![0; 16]);
    check(&compressed_config("pack-quantized", 4), &tensors, &matrix, Some(Int4(32)), "bytes of 0");
}

#[test]
fn compressed_tensors_with_groups_of_the_size_that_the_configuration_says() {
    let mut config = compressed_config("pack-quantized", 4);
    let weights = &mut config["config_groups"]["group_0"]["weights"];
    (weights["strategy"], weights["group_size"]) = (json!("group"), json!(32));
    config["transform_config"] = json!({"config_groups": {}});
    let matrix = Matrix::new((10, 96), 4, 32, true);
    check(&config, &matrix.compressed("a", true, &[10, 3]), &matrix, Some(Int4(32)), "groups of 32");
    // Rows that are shorter than a group.
    config["config_groups"]["group_0"]["weights"]["group_size"] = json!(128);
    let matrix = Matrix::new((10, 96), 4, 96, true);
    check(&config, &matrix.compressed("a", true, &[10, 1]), &matrix, Some(Int4(32)), "one group");
}

#[test]
fn words_have_the_documented_order() {
    let word = |name: &str, shape: &[usize], word: u32| {
        (format!("a.{name}"), "I32", shape.to_vec(), word.to_le_bytes().to_vec())
    };
    let scales = |shape: &[usize], n: usize| {
        ("a.scales".to_owned(), "F16", shape.to_vec(), f16::ONE.to_le_bytes().repeat(n))
    };
    // Eight outputs of one input, each its own number; the zero of each is its number from the end.
    let tensors =
        [word("qweight", &[1, 1], 0x7531_6420), word("qzeros", &[1, 1], 0x0246_1357), scales(&[1, 8], 8)];
    let (_dir, source) = open(&awq_config(-1), &tensors);
    let mut out = [0.0; 8];
    source.unwrap().read_f32("a.weight", 0, &mut out).unwrap();
    assert_eq!(out, [-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0]);
    // Eight inputs of eight outputs, and zeros from 1 to 8, less 1.
    let mut tensors =
        [word("qweight", &[1, 8], 0x7654_3210), word("qzeros", &[1, 1], 0x7654_3210), scales(&[1, 8], 8)];
    tensors[0].3 = tensors[0].3.repeat(8);
    let (_dir, source) = open(&gptq_config(4, -1, false), &tensors);
    let mut out = [0.0; 64];
    source.unwrap().read_f32("a.weight", 0, &mut out).unwrap();
    let want: Vec<f32> = (0..64).map(|i| (i % 8) as f32 - (i / 8 + 1) as f32).collect();
    assert_eq!(out[..], want);
}

#[test]
fn a_zero_that_was_0_wraps_around_in_gptqs_first_format() {
    let mut matrix = Matrix::new((8, 32), 4, 32, false);
    matrix.zeros = vec![0, 1, 2, 3, 15, 14, 8, 0];
    check(&gptq_config(4, 32, false), &matrix.gptq("a", 1), &matrix, Some(Int4Min(32)), "zeros");
}

#[test]
fn several_threads_read_several_matrices() {
    let matrix = Matrix::new((64, 128), 4, 64, false);
    let names = ["q", "k", "v", "w", "x"];
    let tensors: Vec<_> = names.iter().flat_map(|name| matrix.awq(name)).collect();
    let (_dir, source) = open(&awq_config(64), &tensors);
    let (source, want) = (source.unwrap(), matrix.weights());
    source.set_mapped(true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (source, want) = (&source, &want);
            scope.spawn(move || {
                for name in names {
                    let mut out = vec![0.0; 16 * 128];
                    source.read_f32(&format!("{name}.weight"), thread * 16 * 128, &mut out).unwrap();
                    assert!(out == want[thread * 16 * 128..][..16 * 128], "{name}");
                }
            });
        }
    });
    source.check_unchanged().unwrap();
}
