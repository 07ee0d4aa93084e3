//! The corpus of the fuzz targets, replayed: what a fuzzer once found stays fixed.

use std::path::Path;

use super::{ALONE, install_hook, targets};

#[test]
fn the_fuzz_corpus_is_harmless() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    install_hook();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in targets::ALL {
        let inputs =
            std::fs::read_dir(root.join(name)).unwrap_or_else(|e| panic!("the corpus of {name}: {e}"));
        let mut count = 0;
        for input in inputs {
            target(&std::fs::read(input.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}
