//! How a [`PackedModel`] is made: the model is loaded as it would be to run, and what was packed is kept.

use pace_kernels::{Kernels, Par};

use crate::arch::Architecture;
use crate::weights::WeightSource;
use crate::weights::packed::PackedModel;
use crate::{Decoder, DecoderSpec, LoadOptions, Model, ModelError};

impl PackedModel {
    /// Packs the weights of `source` in memory, as [`Decoder::load`] does it.
    ///
    /// # Errors
    /// As [`Decoder::load`]; `source` is packed already.
    pub fn new(
        source: &dyn WeightSource,
        arch: Architecture,
        spec: &DecoderSpec,
        options: LoadOptions,
        kernels: Kernels,
        par: Par<'_>,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        if let Some(packed) = source.packed() {
            let origin = crate::file::clip(&packed.manifest().origin.name);
            let what = format!("the model is packed already: pack what it was made from, {origin}");
            return Err(packed.manifest_error("origin", what));
        }
        let (search_scales, allow_nonfinite) = (options.search_scales, options.allow_nonfinite);
        let importance = options.importance.as_ref().map(|importance| importance.model().to_owned());
        let mut matrices = Vec::new();
        let model =
            Decoder::load_keeping(source, arch, spec, options, kernels, par, progress, Some(&mut matrices))?;
        let losses = model.weights().losses;
        let mut vectors = Vec::new();
        let expected = arch.expected_tensors(source.naming(), spec);
        let expected = expected.filter(|(_, shape)| shape.len() == 1).map(|(name, _)| name);
        for name in expected.chain(arch.spec_tensors(source.naming()).iter().map(|&name| name.to_owned())) {
            let Some(info) = source.info(&name) else { continue };
            let mut vector = vec![0.0; info.shape.iter().product()];
            if allow_nonfinite {
                source.read_any_f32(&name, 0, &mut vector)?;
            } else {
                source.read_f32(&name, 0, &mut vector)?;
            }
            vectors.push((name, vector));
        }
        source.check_unchanged()?;
        Ok(Self { architecture: arch, search_scales, importance, allow_nonfinite, losses, matrices, vectors })
    }
}
