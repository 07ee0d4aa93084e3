//! `pace-cli launch`: a program with another memory allocator.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use pace_runtime::config::Env;

use crate::args::{Allocator, LaunchArgs};
use crate::exit::Usage;

/// Where libraries lie whatever the system's configuration says.
const USUAL: [&str; 7] = [
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
];

pub(crate) fn run(env: &Env, args: &LaunchArgs) -> Result<()> {
    let dirs = folders(env, Path::new("/etc"));
    let library = find(args.allocator, &dirs).ok_or_else(|| missing(args.allocator, &dirs))?;
    let (program, rest) = args.command.split_first().ok_or_else(|| Usage("no program".to_owned()))?;
    tracing::info!("{} before {}", library.display(), program.display());
    let preload = preload(&library, env.ld_preload.as_deref());
    let error = Command::new(program).args(rest).env("LD_PRELOAD", preload).exec();
    Err(Usage(format!("{}: {error}", program.display())).into())
}

impl Allocator {
    /// How the files of its library begin, the best first.
    const fn stems(self) -> &'static [&'static str] {
        match self {
            Self::Tcmalloc => &["libtcmalloc.so", "libtcmalloc_minimal.so"],
            Self::Jemalloc => &["libjemalloc.so"],
            Self::Mimalloc => &["libmimalloc.so"],
        }
    }

    /// What installs it.
    const fn advice(self) -> &'static str {
        match self {
            Self::Tcmalloc => "apt install google-perftools, or conda install gperftools",
            Self::Jemalloc => "apt install libjemalloc2, or conda install jemalloc",
            Self::Mimalloc => "apt install libmimalloc2.0, or conda install mimalloc",
        }
    }
}

/// Where libraries are looked for, in the order of the dynamic linker; conda's folder comes after its own variable.
fn folders(env: &Env, etc: &Path) -> Vec<PathBuf> {
    let mut dirs = env.ld_library_path.clone();
    dirs.extend(env.conda_prefix.as_ref().map(|prefix| prefix.join("lib")));
    let mut files: Vec<PathBuf> = fs::read_dir(etc.join("ld.so.conf.d"))
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    for file in [etc.join("ld.so.conf")].into_iter().chain(files) {
        let text = fs::read_to_string(file).unwrap_or_default();
        dirs.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    dirs.extend(USUAL.map(PathBuf::from));
    let mut seen = Vec::new();
    dirs.retain(|dir| {
        !seen.contains(dir) && {
            seen.push(dir.clone());
            true
        }
    });
    dirs
}

/// The library: the stem alone or with a version, `libtcmalloc.so.4`.
fn find(allocator: Allocator, dirs: &[PathBuf]) -> Option<PathBuf> {
    let matches = |name: &str, stem: &str| {
        name.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for (stem, dir) in allocator.stems().iter().flat_map(|stem| dirs.iter().map(move |dir| (stem, dir))) {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut found: Vec<String> = names.filter(|name| matches(name, stem)).collect();
        found.sort();
        let fits = |path: &PathBuf| is_of_this_machine(path) && !breaks_list(path);
        if let Some(path) = found.iter().map(|name| dir.join(name)).find(fits) {
            return Some(path);
        }
    }
    None
}

/// Whether a file is an ELF library of 64 or 32 bits and for a CPU as this program is: the loader only warns of others.
fn is_of_this_machine(path: &Path) -> bool {
    let head = |path: &Path| {
        let mut head = [0; 20];
        fs::File::open(path)?.read_exact(&mut head)?;
        std::io::Result::Ok(head)
    };
    let class_and_machine = |head: [u8; 20]| (head[4], [head[18], head[19]]);
    match (head(path), std::env::current_exe().and_then(|own| head(&own))) {
        (Ok(library), Ok(own)) => {
            library.starts_with(b"\x7fELF") && class_and_machine(library) == class_and_machine(own)
        }
        (library, _) => library.is_ok_and(|head| head.starts_with(b"\x7fELF")),
    }
}

/// Whether the loader would take a path for several: it separates by spaces and colons.
fn breaks_list(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b" :".contains(byte))
}

fn missing(allocator: Allocator, dirs: &[PathBuf]) -> Usage {
    let searched: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Usage(format!(
        "there is no {} in: {}; to get it: {}",
        allocator.stems().join(" or "),
        searched.join(", "),
        allocator.advice()
    ))
}

/// The library before what is preloaded already.
fn preload(library: &Path, before: Option<&OsStr>) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(before) = before {
        list.push(":");
        list.push(before);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_library_of_all_folders_is_found() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let paths: Vec<PathBuf> = dirs.iter().map(|dir| dir.path().to_path_buf()).collect();
        assert_eq!(find(Allocator::Tcmalloc, &paths), None);
        let library = fs::read(std::env::current_exe().unwrap()).unwrap()[..64].to_vec();
        let of_another_machine = [&library[..18], &[3, 0], &library[20..]].concat();
        fs::write(paths[1].join("libtcmalloc.so"), of_another_machine).unwrap();
        fs::write(paths[1].join("libtcmalloc.so.3"), "no library").unwrap();
        assert_eq!(find(Allocator::Tcmalloc, &paths), None);
        fs::write(paths[0].join("libtcmalloc_minimal.so.4"), &library).unwrap();
        fs::write(paths[0].join("libtcmalloc.sooner"), &library).unwrap();
        assert_eq!(find(Allocator::Tcmalloc, &paths), Some(paths[0].join("libtcmalloc_minimal.so.4")));
        fs::write(paths[2].join("libtcmalloc.so.4.5"), &library).unwrap();
        assert_eq!(find(Allocator::Tcmalloc, &paths), Some(paths[2].join("libtcmalloc.so.4.5")));
        let spaced = paths[2].join("a b");
        fs::create_dir(&spaced).unwrap();
        fs::write(spaced.join("libmimalloc.so"), &library).unwrap();
        assert_eq!(find(Allocator::Mimalloc, &[spaced]), None, "the loader would take it for two");
        let message = missing(Allocator::Mimalloc, &paths).to_string();
        assert!(
            message.contains("libmimalloc.so") && message.contains("conda install mimalloc"),
            "{message}"
        );
        assert!(paths.iter().all(|path| message.contains(&path.display().to_string())), "{message}");
    }

    #[test]
    fn variables_and_the_linker_s_configuration_say_where() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("ld.so.conf.d")).unwrap();
        fs::write(etc.path().join("ld.so.conf"), "include /etc/ld.so.conf.d/*.conf\n/opt/a\n").unwrap();
        fs::write(etc.path().join("ld.so.conf.d/x.conf"), "# b\n/opt/b\n/usr/lib\n").unwrap();
        let lookup = |name: &str| match name {
            "LD_LIBRARY_PATH" => Some("/l1::relative:/l2".into()),
            "CONDA_PREFIX" => Some("/conda".into()),
            _ => None,
        };
        let dirs = folders(&Env::from_lookup(&lookup).unwrap(), etc.path());
        let first: Vec<_> = dirs.iter().take(6).map(|dir| dir.to_str().unwrap()).collect();
        assert_eq!(first, ["/l1", "/l2", "/conda/lib", "/opt/a", "/opt/b", "/usr/lib"]);
        assert_eq!(dirs.iter().filter(|dir| dir.as_path() == Path::new("/usr/lib")).count(), 1);
    }

    #[test]
    fn what_is_preloaded_already_stays() {
        assert_eq!(preload(Path::new("/a.so"), None), "/a.so");
        assert_eq!(preload(Path::new("/a.so"), Some(OsStr::new("/b.so"))), "/a.so:/b.so");
    }
}
