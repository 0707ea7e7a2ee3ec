//! The one layer of an image: files, the folders they are in, and the few that every Linux program expects.
//!
//! Pure. Everything that differs from one machine or moment to another (times, owners, order, modes) is fixed here.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use anyhow::{Result, bail};

/// Folders that container runtimes mount on or programs write to.
const FOLDERS: [(&str, u32); 5] = [("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)];

/// What a user's name is looked up in: the programs' own, and root.
const PASSWD: &str = "root:x:0:0:root:/:/\nsluice:x:65532:65532:sluice:/:/\n";

enum Entry {
    Folder(u32),
    File(u32, Vec<u8>),
}

/// Packs these files, executable by all. A file that is named twice must be the same.
pub(super) fn pack(files: Vec<(PathBuf, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    for (folder, mode) in FOLDERS {
        entries.insert(PathBuf::from(folder), Entry::Folder(mode));
    }
    entries.insert(PathBuf::from("etc/passwd"), Entry::File(0o644, PASSWD.into()));
    for (path, content) in files {
        let path = normal(&path);
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            entries.entry(parent.to_owned()).or_insert(Entry::Folder(0o755));
        }
        match entries.get(&path) {
            Some(Entry::File(_, other)) if *other == content => {}
            Some(_) => bail!("{} is in the image twice", path.display()),
            None => {
                entries.insert(path, Entry::File(0o755, content));
            }
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in &entries {
        match entry {
            Entry::Folder(mode) => append(&mut tar, path, tar::EntryType::Directory, *mode, &[])?,
            Entry::File(mode, content) => append(&mut tar, path, tar::EntryType::Regular, *mode, content)?,
        }
    }
    Ok(tar.into_inner()?)
}

/// Appends an entry that tells nothing about when and where it was made.
pub(super) fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &Path,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(u64::try_from(content.len())?);
    Ok(tar.append_data(&mut header, path, content)?)
}

/// Relative to the image's root, without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
        normal
    })
}
