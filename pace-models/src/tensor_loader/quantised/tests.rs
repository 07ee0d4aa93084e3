//! Weights that 4 bits with a scale in f16 cannot hold.

use std::path::Path;

use pace_kernels::WeightFormat::{Bf16, Int4, Int4Min, Int8};
use pace_kernels::{DType, Kernels, Par};

use super::*;
use crate::weights::packed::{Origin, OriginKind, PackedModel, PackedSource};
use crate::weights::random::{RandomSource, random_spec};
use crate::weights::{Naming, TensorInfo, WeightSource};
use crate::{Decoder, LoadOptions};

const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const ROW: usize = 11;
const ARCH: crate::Architecture = crate::Architecture::Llama;

/// A random model with one row of a matrix times `scale` and plus `min`; of the matrix as integers of 4 bits, these are the
/// row's own.
struct Changed {
    source: RandomSource,
    scale: f32,
    min: f32,
}

impl Changed {
    fn new(scale: f32, min: f32) -> Self {
        Self { source: RandomSource::new(&random_spec("tiny").unwrap(), 7), scale, min }
    }

    fn load(&self, options: LoadOptions) -> Result<(), ModelError> {
        let spec = random_spec("tiny").unwrap();
        Decoder::load(self, ARCH, &spec, options, Kernels::detect(), Par::seq(), &|_| {}).map(drop)
    }
}

impl WeightSource for Changed {
    fn naming(&self) -> Naming {
        self.source.naming()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.source.tensors()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(name)
    }

    fn path(&self, name: &str) -> &Path {
        self.source.path(name)
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.source.read_f32(name, start, out)?;
        if name == DOWN {
            let k = self.info(name).unwrap().shape[1];
            let row = out.iter_mut().enumerate().filter(|(i, _)| (start + i) / k == ROW);
            row.for_each(|(_, x)| *x = *x * self.scale + self.min);
        }
        Ok(())
    }

    fn codes(&self, name: &str) -> Option<WeightFormat> {
        (name == DOWN).then_some(Int4Min(32))
    }

    fn read_codes(
        &self,
        _name: &str,
        first_row: usize,
        _format: WeightFormat,
        rows: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        let groups = codes::groups(Int4Min(32), self.info(DOWN).unwrap().shape[1]);
        rows.codes.fill(3);
        rows.scales.fill(0.01);
        rows.mins.fill(-0.02);
        for at in (0..rows.scales.len()).filter(|at| first_row + at / groups == ROW) {
            (rows.scales[at], rows.mins[at]) = (self.scale, self.min);
        }
        Ok(())
    }
}

#[test]
fn weights_beyond_what_f16_scales_reach_are_refused() {
    let made = |format| LoadOptions::new(format, DType::Bf16);
    let own = || LoadOptions { own_formats: true, ..made(Bf16) };
    let refused = [
        (made(Int4(32)), 1e7, 0.0, "int4:32, which has their scale"),
        (made(Int4Min(32)), 1e8, 0.0, "int4m:32, which has their scale"),
        (made(Int4Min(32)), 1.0, 7e4, "int4m:32, which has their minimum"),
        (own(), 65520.0, 0.0, "int4m:32, which has their scale"),
        (own(), 0.01, -65520.0, "int4m:32, which has their minimum"),
    ];
    for (options, scale, min, expected) in refused {
        for search_scales in [false, true] {
            let source = Changed::new(scale, min);
            let options = LoadOptions { search_scales, ..options.clone() };
            let message = source.load(options.clone()).unwrap_err().to_string();
            let place = format!("tensor `{DOWN}`: row {ROW}, group 0: the weights are too large for ");
            assert!(message.contains(&place) && message.contains(expected), "{message}");
            assert!(message.contains("65504 at most; --quant int8 or --dtype bf16"), "{message}");
            source.load(LoadOptions { allow_nonfinite: true, ..options }).unwrap();
        }
    }
    let accepted = [
        (made(Int8), 1e7, 7e4),
        (made(Bf16), 1e7, 7e4),
        (made(Int4(32)), 1e5, 0.0),
        (own(), 65504.0, -65504.0),
    ];
    for (options, scale, min) in accepted {
        Changed::new(scale, min).load(options).unwrap();
    }
}

#[test]
fn a_pack_of_numbers_that_were_not_checked_can_be_opened() {
    let (spec, dir) = (random_spec("tiny").unwrap(), tempfile::tempdir().unwrap());
    let options = LoadOptions { allow_nonfinite: true, ..LoadOptions::new(Int4(32), DType::Bf16) };
    let source = Changed::new(1e7, 0.0);
    let (kernels, par) = (Kernels::detect(), Par::seq());
    let packed = PackedModel::new(&source, ARCH, &spec, options, kernels, par, &|_| {}).unwrap();
    assert!(!packed.losses()[0].relative_rms.is_finite());
    let origin = Origin { name: "tiny".to_owned(), path: None, files: Vec::new() };
    packed.write(dir.path(), origin, OriginKind::Random, "scalar", &mut |_| Ok(())).unwrap();
    assert!(PackedSource::open(dir.path()).unwrap().losses().is_empty());
}
