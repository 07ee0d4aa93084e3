//! Checkpoints that are wrong in one way.

use super::*;

fn with(mut config: Value, change: &Value) -> Value {
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    config
}

#[test]
fn methods_that_are_not_supported_are_named() {
    let gptq = |change: Value| with(gptq_config(4, 32, true), &change);
    let awq = |change: Value| with(awq_config(32), &change);
    let compressed = |change: Value| with(compressed_config("int-quantized", 8), &change);
    let weights = |change: Value| {
        let mut config = compressed_config("int-quantized", 8);
        let weights = &mut config["config_groups"]["group_0"]["weights"];
        weights.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        config
    };
    let cases = [
        (json!({}), "`quantization_config.quant_method`: is missing"),
        (json!({"quant_method": "fp8"}), "quant_method`: `fp8` is not supported; supported: gptq, awq"),
        (json!(4), "`quantization_config`: must be an object"),
        (gptq(json!({"bits": 3})), "`quantization_config.bits`: must be 4 or 8, but is 3"),
        (gptq(json!({"bits": null})), "`quantization_config.bits`: is missing"),
        (gptq(json!({"group_size": 0})), "group_size`: must be a whole number from 1"),
        (gptq(json!({"group_size": null})), "group_size`: is missing"),
        (gptq(json!({"sym": 1})), "sym`: must be true or false"),
        (gptq(json!({"checkpoint_format": "marlin"})), "checkpoint_format`: `marlin` is not supported"),
        (gptq(json!({"is_marlin_format": true})), "is_marlin_format`: must be false"),
        (awq(json!({"bits": 8})), "bits`: must be 4, but is 8"),
        (awq(json!({"version": "gemv"})), "version`: `gemv` is not supported; supported: gemm"),
        (awq(json!({"zero_point": false})), "zero_point`: must be true"),
        (compressed(json!({"format": "float-quantized"})), "format`: `float-quantized` is not supported"),
        (compressed(json!({"config_groups": null})), "config_groups`: is missing"),
        (compressed(json!({"sparsity_config": {"format": "sparse-24-bitmask"}})), "must be dense"),
        (
            compressed(json!({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}})),
            "transform_config`: must be empty",
        ),
        (compressed(json!({"transform_config": [1]})), "transform_config`: must be an object"),
        (
            weights(json!({"strategy": "group", "group_size": 0})),
            "weights.group_size`: must be a whole number",
        ),
        (weights(json!({"type": "float"})), "config_groups.group_0.weights.type`: must be int"),
        (weights(json!({"num_bits": 6})), "weights.num_bits`: must be 4 or 8, but is 6"),
        (weights(json!({"symmetric": 0})), "weights.symmetric`: must be true or false"),
        (weights(json!({"dynamic": true})), "weights.dynamic`: must be false"),
        (weights(json!({"actorder": "group"})), "weights.actorder`: must be"),
        (weights(json!({"strategy": "block"})), "weights.strategy`: `block` is not supported"),
        (gptq(json!({})), "names a method whose tensors (`….qweight`) the files do not hold"),
    ];
    for (config, expected) in cases {
        let (_dir, source) = open(&config, &[ordinary("a.weight")]);
        let message = source.unwrap_err().to_string();
        assert!(message.contains("config.json: field `quant") && message.contains(expected), "{message}");
    }
}

/// The message of opening a checkpoint of `tensors` after `change` was made to the one that ends in `part`.
fn refusal(config: &Value, tensors: &[Tensor], part: &str, change: fn(&mut Tensor)) -> String {
    let mut tensors = tensors.to_vec();
    change(tensors.iter_mut().find(|tensor| tensor.0 == format!("a.{part}")).unwrap());
    let (_dir, source) = open(config, &tensors);
    source.unwrap_err().to_string()
}

/// Cuts a tensor to a shape, whose bytes it has already.
fn reshape(tensor: &mut Tensor, shape: &[usize]) {
    let size = tensor.3.len() / tensor.2.iter().product::<usize>();
    tensor.3.truncate(size * shape.iter().product::<usize>());
    tensor.2 = shape.to_vec();
}

#[test]
fn parts_of_other_types_or_shapes_are_named() {
    let (gptq, awq) = (gptq_config(4, 32, true), awq_config(32));
    let matrix = Matrix::new((16, 64), 4, 32, true);
    let change = |part: &str, change| refusal(&gptq, &matrix.gptq("a", 1), part, change);
    let change_awq = |part: &str, change| refusal(&awq, &matrix.awq("a"), part, change);
    let cases = [
        (change("qzeros", |t| reshape(t, &[1, 2])), "a.qzeros`: is I32 of shape [1, 2]; I32 of shape [2, 2]"),
        (change("qzeros", |t| reshape(t, &[4])), "a.qzeros`: is I32 of shape [4]"),
        (change("qzeros", |t| t.0 = "b".into()), "a.qzeros`: is missing; I32 of shape [2, 2] is right"),
        (change("scales", |t| reshape(t, &[2, 8])), "a.scales`: is F16 of shape [2, 8]; F16 or BF16"),
        (change("scales", |t| t.1 = "I16"), "a.scales`: is I16 of shape [2, 16]"),
        (change("scales", |t| t.0 = "b".into()), "a.scales`: is missing"),
        (
            change("g_idx", |t| reshape(t, &[63])),
            "a.g_idx`: is I32 of shape [63]; I32 of shape [64] is right",
        ),
        (change("g_idx", |t| t.3[4 * 7] = 2), "a.g_idx`: element 7 is 2; from 0 to 1 is right"),
        (change("g_idx", |t| t.3[4 * 7 + 3] = 0xff), "a.g_idx`: element 7 is -16777216; from 0"),
        (change("qweight", |t| t.1 = "F32"), "a.qweight`: is F32 of shape [8, 16]; I32"),
        (change("qweight", |t| reshape(t, &[8, 4, 4])), "a.qweight`: has shape [8, 4, 4]; two dimensions"),
        (change("qweight", |t| reshape(t, &[8, 0])), "a.qweight`: 0 outputs of 64 inputs; from 1"),
        (change("qweight", |t| reshape(t, &[7, 16])), "a.qweight`: groups of 32 inputs do not divide its 56"),
        (change("qweight", |t| reshape(t, &[8, 12])), "a.qweight`: 12 outputs; a multiple of 8 is right"),
        (change_awq("qzeros", |t| reshape(t, &[2, 1])), "a.qzeros`: is I32 of shape [2, 1]"),
        (
            change_awq("qweight", |t| reshape(t, &[48, 2])),
            "a.qweight`: groups of 32 inputs do not divide its 48",
        ),
        (change_awq("scales", |t| reshape(t, &[1, 16])), "a.scales`: is F16 of shape [1, 16]"),
    ];
    for (message, expected) in cases {
        assert!(message.contains("model.safetensors: tensor `a.") && message.contains(expected), "{message}");
    }
    let no_order = with(gptq.clone(), &json!({"desc_act": true}));
    let (_dir, source) = open(&no_order, &matrix.gptq("a", 1)[..3]);
    let message = source.unwrap_err().to_string();
    assert!(message.contains("a.g_idx`: is missing; I32 of shape [64]"), "{message}");
    let both = [matrix.gptq("a", 1), vec![ordinary("a.weight")]].concat();
    let message = open(&gptq, &both).1.unwrap_err().to_string();
    assert!(message.contains("`a.weight`: is there both quantised and not"), "{message}");
}

#[test]
fn parts_of_compressed_tensors_are_checked() {
    let (bytes, words) = (compressed_config("int-quantized", 8), compressed_config("pack-quantized", 4));
    let wide = Matrix::new((6, 64), 8, 32, true).compressed("a", false, &[6, 2]);
    let narrow = Matrix::new((6, 64), 4, 32, true).compressed("a", true, &[6, 2]);
    let (uneven, uneven_words) =
        (compressed("int-quantized", 8, false), compressed("pack-quantized", 4, false));
    let change = |part: &str, change| refusal(&bytes, &wide, part, change);
    let zeros = |change| refusal(&uneven, &wide, "weight_zero_point", change);
    let packed_zeros = |change| refusal(&uneven_words, &narrow, "weight_zero_point", change);
    let packed = |part: &str, change| refusal(&words, &narrow, part, change);
    let cases = [
        (change("weight_scale", |t| t.0 = "b".into()), "a.weight_scale`: is missing"),
        (change("weight_scale", |t| reshape(t, &[5, 2])), "a.weight_scale`: is F16 of shape [5, 2]"),
        (change("weight_scale", |t| t.1 = "I16"), "a.weight_scale`: is I16"),
        (change("weight_scale", |t| reshape(t, &[6, 0])), "a.weight_scale`: 0 groups do not divide 64"),
        (change("weight", |t| reshape(t, &[6, 63])), "a.weight_scale`: 2 groups do not divide 63 inputs"),
        (change("weight", |t| reshape(t, &[384])), "a.weight`: has shape [384]; two dimensions"),
        (packed("weight_shape", |t| t.0 = "b".into()), "a.weight_shape`: is missing"),
        (
            packed("weight_shape", |t| t.3[8] = 128),
            "a.weight_packed`: is I32 of shape [6, 8]; for 6 outputs of 128",
        ),
        (packed("weight_shape", |t| t.3[15] = 0xff), "a.weight_packed`: is I32 of shape [6, 8]; for"),
        (packed("weight_packed", |t| reshape(t, &[6, 7])), "a.weight_packed`: is I32 of shape [6, 7]"),
        (packed("weight_packed", |t| t.1 = "F32"), "a.weight_packed`: is F32"),
        (zeros(|t| reshape(t, &[6, 1])), "a.weight_zero_point`: is I8 of shape [6, 1]; I8 of shape [6, 2]"),
        (zeros(|t| t.1 = "U8"), "a.weight_zero_point`: is U8"),
        (
            packed_zeros(|t| reshape(t, &[1, 1])),
            "a.weight_zero_point`: is I32 of shape [1, 1]; I32 of shape [1, 2]",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains("model.safetensors: tensor `a.") && message.contains(expected), "{message}");
    }
}

#[test]
fn scales_that_no_matrix_has_are_refused_unless_asked_for() {
    let gptq = Matrix::new((16, 64), 4, 32, true).gptq("a", 1);
    let awq = Matrix::new((16, 64), 4, 32, false).awq("a");
    let bytes = Matrix::new((16, 64), 8, 32, true).compressed("a", false, &[16, 2]);
    let cases = [
        (gptq_config(4, 32, true), gptq, "scales", 16 + 5),
        (awq_config(32), awq, "scales", 16 + 5),
        (compressed_config("int-quantized", 8), bytes, "weight_scale", 5 * 2 + 1),
    ];
    for (config, tensors, part, at) in cases {
        for (scale, number) in [(f16::ZERO, "0"), (f16::NAN, "NaN"), (f16::NEG_INFINITY, "-inf")] {
            let mut tensors = tensors.clone();
            let scales = tensors.iter_mut().find(|tensor| tensor.0 == format!("a.{part}")).unwrap();
            scales.3[2 * at..2 * at + 2].copy_from_slice(&scale.to_le_bytes());
            let (_dir, source) = open(&config, &tensors);
            let source = source.unwrap();
            let format = source.codes("a.weight").unwrap();
            let mut out = vec![0.0; 16 * 64];
            let of_numbers = source.read_f32("a.weight", 0, &mut out).unwrap_err().to_string();
            let of_codes = rows(&source, 5, (1, 64), format).unwrap_err().to_string();
            let expected = format!("tensor `a.{part}`: the scale of output 5, group 1 is {number}; finite");
            assert!(
                of_numbers.contains(&expected) && of_codes.contains(&expected),
                "{of_numbers}, {of_codes}"
            );
            rows(&source, 6, (10, 64), format).unwrap();
            source.read_any_f32("a.weight", 0, &mut out).unwrap();
        }
    }
}

#[test]
fn zeros_that_contradict_the_configuration_are_refused() {
    let matrix = Matrix::new((16, 64), 4, 32, false);
    let (_dir, source) = open(&gptq_config(4, 32, true), &matrix.gptq("a", 1));
    let message = source.unwrap().read_f32("a.weight", 0, &mut [0.0; 64]).unwrap_err().to_string();
    assert!(message.contains("tensor `a.qzeros`: output 0, group 0 has the zero 3, but"), "{message}");
}

#[test]
fn compressed_tensors_that_contradict_the_configuration_are_refused() {
    for (layout, bits, zero) in [("int-quantized", 8, -125), ("pack-quantized", 4, -5)] {
        let matrix = Matrix::new((16, 64), bits, 32, false);
        let mut tensors = matrix.compressed("a", bits == 4, &[16, 2]);
        let (_dir, source) = open(&compressed(layout, bits, true), &tensors);
        let source = source.unwrap();
        let format = source.codes("a.weight").unwrap();
        let of_numbers = source.read_f32("a.weight", 0, &mut [0.0; 64]).unwrap_err().to_string();
        let of_codes = rows(&source, 0, (1, 64), format).unwrap_err().to_string();
        let expected = format!(
            "tensor `a.weight_zero_point`: output 0, group 0 has the zero point {zero}, but `symmetric`"
        );
        assert!(of_numbers.contains(&expected) && of_codes.contains(&expected), "{of_numbers}, {of_codes}");
        tensors.retain(|tensor| !tensor.0.ends_with("zero_point"));
        let message = open(&compressed(layout, bits, false), &tensors).1.unwrap_err().to_string();
        assert!(message.contains("tensor `a.weight_zero_point`: is missing; I"), "{message}");
    }
    let mut config = compressed_config("int-quantized", 8);
    let weights = &mut config["config_groups"]["group_0"]["weights"];
    (weights["strategy"], weights["group_size"]) = (json!("group"), json!(16));
    let tensors = Matrix::new((16, 64), 8, 32, true).compressed("a", false, &[16, 2]);
    let message = open(&config, &tensors).1.unwrap_err().to_string();
    let expected =
        "`a.weight_scale`: 2 groups of 64 inputs, but `group_size` of the `config_groups` is 16: 4 are right";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn rows_beyond_a_matrix_are_refused() {
    let matrix = Matrix::new((16, 64), 4, 32, false);
    let (_dir, source) = open(&awq_config(32), &matrix.awq("a"));
    let source = source.unwrap();
    let mut out = vec![0.0; 128];
    let cases = [
        (source.read_f32("a.weight", 15 * 64, &mut out), "2 rows from 15 on leave its 16 rows"),
        (source.read_f32("a.weight", 3, &mut out), "are no whole rows of 64"),
        (source.read_f32("a.weight", 0, &mut out[..7]), "are no whole rows of 64"),
        (source.read_f32("a.qweight", 0, &mut out), "tensor `a.qweight`: has type I32"),
        (rows(&source, 16, (1, 64), Int4Min(32)).map(drop), "1 rows from 16 on leave its 16 rows"),
        (rows(&source, usize::MAX, (1, 64), Int4Min(32)).map(drop), "leave its 16 rows"),
        (rows(&source, 0, (1, 64), Int4(32)).map(drop), "int4m:32 cannot be widened to int4:32"),
    ];
    for (result, expected) in cases {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && message.contains(expected), "{message}");
    }
}
