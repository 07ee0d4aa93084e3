//! [`BuildCx`]: what building operators needs and no operator owns, and which backends it makes possible.

use std::sync::Arc;

use pace_kernels::{
    ActQuant, Isa, Jit, JitCapacity, JitError, Kernels, PackSpec, WeightFormat, WeightLayout,
};

use crate::{Backend, Choice, MClass, OpDType, OpError, OpShape, OpSize, Operator};

/// How operators are built: for which CPU, in which blocks, with generated code or without. One per engine.
#[derive(Clone, Debug)]
pub struct BuildCx {
    kernels: Kernels,
    jit: Result<Arc<Jit>, Arc<JitError>>,
    /// Outputs in a panel of weights (`LIBXSMM_BLOCK_SIZE`): 32, or 64, which measures best.
    pub panel_width: usize,
    /// Chunks of IMBPS (`IMBPS_BLOCK_SIZE`); none: as many as the rows and the caches suggest.
    pub imbps_chunks: Option<usize>,
    /// How activations are rounded for int8 weights.
    pub act_quant: ActQuant,
    /// Bytes of all last-level caches together: what does not stay in any of them is twice as large, or more.
    pub l3_bytes: usize,
    /// Bytes of the smallest last-level cache that a thread of the engine has: what all of them share fits that.
    pub smallest_l3: usize,
}

impl BuildCx {
    /// Builds for the tier of `kernels`, with a cache of generated code of its own.
    pub fn new(kernels: Kernels) -> Self {
        let jit = Jit::new(kernels, JitCapacity::default()).map(Arc::new).map_err(Arc::new);
        Self {
            kernels,
            jit,
            panel_width: 64,
            imbps_chunks: None,
            act_quant: ActQuant::default(),
            l3_bytes: 32 << 20,
            smallest_l3: 32 << 20,
        }
    }

    /// The kernels that operators are built for.
    pub const fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The generator of kernels.
    ///
    /// # Errors
    /// The tier lacks the instructions, or the system refuses executable memory.
    pub fn jit(&self) -> Result<&Arc<Jit>, &JitError> {
        self.jit.as_ref().map_err(AsRef::as_ref)
    }

    /// Whether a backend of an operator can be built here for weights, keys or activations of a type.
    ///
    /// # Errors
    /// It does not exist at all, not for the type, or not on this CPU; the error says which.
    pub fn check(&self, op: Operator, backend: Backend, dtype: OpDType) -> Result<(), OpError> {
        if backend == Backend::Auto {
            return Ok(());
        }
        op.require(backend)?;
        if !op.dtypes(backend).contains(&dtype) {
            let available =
                op.backends().iter().copied().filter(|&b| op.dtypes(b).contains(&dtype)).collect();
            return Err(OpError::UnsupportedType { op, backend, dtype, available });
        }
        if backend == Backend::Imbps && dtype.is_quantised() && self.act_quant == ActQuant::Token {
            let reason = "a scale for each token needs all of its chunks; use scales for groups".to_owned();
            return Err(OpError::Unavailable { op, backend, reason });
        }
        if backend == Backend::Jit {
            // Int8 keys and values are multiplied as bf16.
            let vnni = dtype == OpDType::Int8 && op != Operator::Attention;
            let needed = if vnni { Isa::Avx512Vnni } else { Isa::Avx512Bf16 };
            let actual = self.kernels.isa();
            let reason = match self.jit() {
                _ if actual < needed => JitError::Isa { needed, actual }.to_string(),
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            return Err(OpError::Unavailable { op, backend, reason });
        }
        Ok(())
    }

    /// Puts a concrete backend in place of every `Auto`, by the built-in rules: what measures best on CPUs that have
    /// been measured. See [`Plan`](crate::Plan) for what measures best on this one.
    ///
    /// # Errors
    /// As [`check`](Self::check), or the backend lacks the shape.
    pub fn resolve(&self, shape: OpShape, choice: Choice) -> Result<Choice, OpError> {
        let mut by_class = [Backend::Auto; 3];
        for (class, backend) in MClass::ALL.into_iter().zip(&mut by_class) {
            *backend = match choice.of(class) {
                Backend::Auto => rule(shape),
                chosen => chosen,
            };
            self.check(shape.op, *backend, shape.dtype)?;
            if *backend != Backend::Native && !shape.is_tiled() {
                let reason = format!("{}; the tiles take multiples of 8 up to 256 dimensions", shape.size);
                return Err(OpError::Unavailable { op: shape.op, backend: *backend, reason });
            }
        }
        Ok(Choice::new(by_class))
    }

    /// How weights of a format are packed for an operator with the backends of `choice`, which has no `Auto`. The
    /// down matrix of an MLP is packed as for [`Operator::Linear`].
    pub fn pack_spec(&self, shape: OpShape, choice: Choice, format: WeightFormat) -> PackSpec {
        // NATIVE reads rows, as libraries do; integers exist in panels alone.
        if choice.is_native() && !format.is_quantised() {
            return format.into();
        }
        let paired = matches!(shape.size, OpSize::Mlp { gated: true, .. });
        PackSpec { format, layout: WeightLayout::Panels { width: self.panel_width, paired } }
    }
}

/// The backend that `Auto` means where nothing was measured.
const fn rule(shape: OpShape) -> Backend {
    match shape.op {
        Operator::Attention if !shape.is_tiled() => Backend::Native,
        Operator::Attention => Backend::Flash,
        _ => Backend::Tpp,
    }
}

#[cfg(test)]
mod tests {
    use pace_kernels::Unit;

    use super::*;

    #[test]
    fn a_pair_that_does_not_exist_is_an_error_that_lists_what_does() {
        let cx = BuildCx::new(Kernels::detect());
        let check = |op, backend, dtype| cx.check(op, backend, dtype).unwrap_err().to_string();
        let error = check(Operator::Norm, Backend::Imbps, OpDType::F32);
        assert_eq!(error, "norm has no backend `imbps`; it has: native, tpp");
        let error = check(Operator::Mlp, Backend::Jit, OpDType::F32);
        assert_eq!(error, "mlp has no backend `jit` for f32; it has: native, tpp, imbps");
        let int8_with_minima = OpDType::from(WeightFormat::Int8Min(32));
        let error = check(Operator::QkvProjection, Backend::Jit, int8_with_minima);
        let weights = "int4, int8m, mxfp4 or mixed weights";
        assert_eq!(error, format!("qkv_projection has no backend `jit` for {weights}; it has: native, tpp"));
    }

    #[test]
    fn generated_code_needs_its_tier_and_auto_does_without() {
        for isa in Isa::supported() {
            let cx = BuildCx::new(Kernels::new(isa).unwrap());
            let jit = cx.check(Operator::Mlp, Backend::Jit, OpDType::Bf16);
            assert_eq!(jit.is_ok(), isa == Isa::Avx512Bf16);
            if let Err(error) = jit {
                assert!(error.to_string().contains("avx512"), "{error}");
            }
            let shape = OpShape::matrix(Operator::LmHead, OpDType::Bf16, 3, 4);
            assert_eq!(cx.resolve(shape, Backend::Auto.into()).unwrap(), Backend::Tpp.into());
        }
    }

    #[test]
    fn without_executable_memory_generated_code_is_unavailable_and_auto_does_without() {
        if Kernels::detect().isa() < Isa::Avx512Bf16 {
            return; // The tier is what is missing then.
        }
        let refused = JitError::Memory(std::io::ErrorKind::PermissionDenied.into());
        let cx = BuildCx { jit: Err(Arc::new(refused)), ..BuildCx::new(Kernels::detect()) };
        let error = cx.check(Operator::Attention, Backend::Jit, OpDType::Bf16).unwrap_err();
        assert!(matches!(error, OpError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("no executable memory"), "{error}");
        let shape = OpShape::matrix(Operator::QkvProjection, OpDType::Bf16, 64, 64);
        assert_eq!(cx.resolve(shape, Backend::Auto.into()).unwrap(), Backend::Tpp.into());
    }

    #[test]
    fn heads_that_are_not_tiled_are_left_to_the_reference() {
        let cx = BuildCx::new(Kernels::detect());
        let size = OpSize::Heads { n_heads: 4, n_kv_heads: 2, head_dim: 12 };
        let shape = OpShape { op: Operator::Attention, dtype: OpDType::F32, size };
        assert_eq!(cx.resolve(shape, Backend::Auto.into()).unwrap(), Backend::Native.into());
        let error = cx.resolve(shape, Backend::Flash.into()).unwrap_err().to_string();
        assert!(error.contains("4/2 heads of 12") && error.contains("multiples of 8"), "{error}");
    }

    #[test]
    fn generated_attention_needs_bf16_products_for_int8_keys_too() {
        for isa in Isa::supported() {
            let cx = BuildCx::new(Kernels::new(isa).unwrap());
            let jit = cx.check(Operator::Attention, Backend::Jit, OpDType::Int8);
            assert_eq!(jit.is_ok(), isa == Isa::Avx512Bf16);
            for backend in [Backend::Native, Backend::Flash] {
                assert!(cx.check(Operator::Attention, backend, OpDType::Int8).is_ok());
            }
        }
        let size = OpSize::Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 };
        let shape = OpShape { op: Operator::Attention, dtype: OpDType::Int8, size };
        assert_eq!(shape.unit(), Unit::Bf16);
        assert_eq!(OpShape::matrix(Operator::Linear, OpDType::Int8, 3, 4).unit(), Unit::Int8);
    }

    #[test]
    fn int8_in_chunks_needs_scales_for_groups() {
        let cx = BuildCx { act_quant: ActQuant::Token, ..BuildCx::new(Kernels::detect()) };
        let error = cx.check(Operator::Mlp, Backend::Imbps, OpDType::Int8).unwrap_err().to_string();
        assert!(error.contains("groups"), "{error}");
        assert!(cx.check(Operator::Mlp, Backend::Tpp, OpDType::Int8).is_ok());
    }
}
