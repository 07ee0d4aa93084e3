//! What the fuzz targets share. The targets themselves lie with the runtime's tests, which replay the corpus.

#![forbid(unsafe_code)]

#[path = "../../pace-runtime/tests/hostile/targets.rs"]
mod targets;

use std::sync::Once;

/// Runs the target called `name` on one input. libFuzzer's panic hook aborts; a panic of the tokenizer library that the runtime catches and
/// reports is no finding, so it does not get there.
pub fn run(name: &str, data: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !pace_runtime::tokenizer::panics_are_caught() {
                abort(info);
            }
        }));
    });
    let (_, target) = targets::ALL.into_iter().find(|target| target.0 == name).expect("a target of the list");
    target(data);
}
