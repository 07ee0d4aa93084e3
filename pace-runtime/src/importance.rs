//! What an engine learns of the inputs of its model's products, for quantising the model.

use pace_models::Importance;
use pace_ops::InputSquares;

use crate::{EngineHandle, RuntimeError};

impl EngineHandle {
    /// The mean squares of the inputs of every product, over all tokens since the engine was started with
    /// `observe_inputs`. `None` when it was not.
    ///
    /// # Errors
    /// The engine has stopped, a product has not been computed yet, or one had inputs that are not finite.
    pub fn importance(&self) -> Result<Option<Importance>, RuntimeError> {
        let info = self.info();
        let Some(means) = self.call(|cx| cx.inputs.map(InputSquares::means))? else { return Ok(None) };
        Ok(Some(Importance::new(&info.model, &info.spec, means)?))
    }
}
