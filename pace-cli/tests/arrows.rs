//! The arrows between the workspace's crates: each may depend on those before it, on none after it.

use std::collections::HashSet;

use cargo_metadata::MetadataCommand;

/// Lowest first. The benches may use any crate, and none may use them.
const ORDER: [&str; 7] =
    ["pace-kernels", "pace-ops", "pace-models", "pace-runtime", "pace-server", "pace-cli", "pace-benches"];

#[test]
fn dependencies_point_down() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let crates: HashSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert!(crates.contains("pace-cli") && crates.len() >= 5, "{crates:?}");
    let level = |name: &str| ORDER.iter().position(|&known| known == name);
    for package in &metadata.packages {
        let own =
            level(&package.name).unwrap_or_else(|| panic!("{} has no place in the order", package.name));
        // Whatever their kind: a test that looks up couples the crates as a library would.
        for dependency in package.dependencies.iter().filter(|d| crates.contains(d.name.as_str())) {
            let below = level(&dependency.name).is_some_and(|other| other < own);
            assert!(below, "{} must not depend on {}", package.name, dependency.name);
        }
    }
}
