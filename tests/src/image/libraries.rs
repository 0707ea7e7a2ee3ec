//! The shared libraries that a program needs, as this machine's loader finds them.
//!
//! The image has them under the same paths, so that the loader in it finds them without a cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Paths of the libraries and of the loader. None for a static program.
pub(super) fn of(binary: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("asking ldd about {}", binary.display());
    ensure!(fs::metadata(binary).with_context(context)?.is_file(), "{} is no file", binary.display());
    let output = Command::new("ldd").arg(binary).env("LC_ALL", "C").output().with_context(context)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "{}: {}", context(), complaint.trim());
    parse(&text).with_context(context)
}

fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        ensure!(!line.ends_with("not found"), "a library is missing here: {line}");
        // `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`
        let found = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = found.split(' ').next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    libraries.sort();
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse(text).unwrap(), paths);
        parse("\tlibx.so => not found\n").unwrap_err();
    }
}
