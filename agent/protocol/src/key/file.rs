//! Key files: PKCS#8 in PEM, readable by their owner only, created as a whole.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use pem_rfc7468::LineEnding;

use super::KeyError;

const LABEL: &str = "PRIVATE KEY";

/// Longest key file that is read: an Ed25519 key takes 170 bytes; a wrong path may lead to a huge or endless file.
const MAX_BYTES: u64 = 16 << 10;

/// The key in `path`; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, KeyError> {
    let failed = |source| KeyError::Read { path: path.into(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    refuse_if_exposed(path, &file)?;
    let mut pem = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut pem).map_err(failed)?;
    let (label, pkcs8) = pem_rfc7468::decode_vec(&pem).map_err(|source| KeyError::Pem { path: path.into(), source })?;
    if label != LABEL {
        return Err(KeyError::Label { path: path.into() });
    }
    Ok(Some(pkcs8))
}

/// Stores a new key in `path`; returns the key that is there afterwards, which is another process's if that was faster.
pub(super) fn create(path: &Path, pkcs8: &[u8]) -> Result<Vec<u8>, KeyError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Write { path, source }
    };
    let pem = pem_rfc7468::encode_string(LABEL, LineEnding::LF, pkcs8)
        .map_err(|source| KeyError::Pem { path: path.into(), source })?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_folder(folder).map_err(failed(folder))?;
    }
    let draft = Draft::write(path, pem.as_bytes()).map_err(failed(path))?;
    match draft.publish(path) {
        Ok(()) => Ok(pkcs8.to_vec()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read(path)?.ok_or_else(|| failed(path)(io::ErrorKind::NotFound.into()))
        }
        Err(error) => Err(failed(path)(error)),
    }
}

/// A file beside the final one, removed when dropped.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn write(target: &Path, contents: &[u8]) -> io::Result<Self> {
        let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.{:016x}.new", std::process::id(), unique()?));
        let path = target.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let draft = Self { path };
        file.write_all(contents)?;
        file.sync_all()?;
        Ok(draft)
    }

    fn publish(&self, target: &Path) -> io::Result<()> {
        // A link never replaces a file that appeared meanwhile. Some file systems have no links (FAT, some network
        // mounts): a rename is as atomic there, and only the race of two first starts is left.
        match std::fs::hard_link(&self.path, target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !target.exists() => {
                std::fs::rename(&self.path, target)
            }
            outcome => outcome,
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Already gone after a rename; nothing can be done about other failures.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn unique() -> io::Result<u64> {
    let bytes: ring::rand::Random<[u8; 8]> =
        ring::rand::generate(&ring::rand::SystemRandom::new()).map_err(|_| io::ErrorKind::Other)?;
    Ok(u64::from_ne_bytes(bytes.expose()))
}

fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(unix)]
fn refuse_if_exposed(path: &Path, file: &File) -> Result<(), KeyError> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = file.metadata().map_err(|source| KeyError::Read { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.into(), mode });
    }
    Ok(())
}

/// Windows has no mode bits: a file in the user's profile is private by inheritance.
#[cfg(not(unix))]
fn refuse_if_exposed(_: &Path, _: &File) -> Result<(), KeyError> {
    Ok(())
}
