//! Attention by a step that is generated for the batch's heads.

use super::{AttentionParams, AttentionPlan, KvSource, item, run};
use crate::jit::{AttentionKey, Scores};
use crate::{ActMut, ActRef, Jit, JitError, KvDType, Par, Scratch};

impl Jit {
    /// As [`Kernels::attention`](crate::Kernels::attention), bit for bit, by a step that is generated for
    /// the head dimension and the number of query heads for each KV head when it is first needed.
    ///
    /// # Errors
    /// The keys and values are neither bf16 nor int8, the tier lacks the instructions, or the system refuses executable
    /// memory. Nothing has been computed then.
    ///
    /// # Panics
    /// As `Kernels::attention`.
    pub fn attention(
        &self,
        params: &AttentionParams<'_>,
        plan: &AttentionPlan,
        kv: &dyn KvSource,
        q: ActRef<'_>,
        out: ActMut<'_>,
        scratch: &Scratch,
        par: &Par<'_>,
    ) -> Result<(), JitError> {
        params.check();
        let dtype = kv.layout().dtype();
        if dtype == KvDType::F32 {
            return Err(JitError::Kv(dtype));
        }
        let key = AttentionKey {
            head_dim: params.head_dim,
            group: params.group(),
            scores: Scores::of(item::logits(params)),
        };
        let step = self.attention_step(&key)?;
        run(self.kernels(), Some(&step), params, plan, kv, q, out, scratch, par);
        Ok(())
    }
}
