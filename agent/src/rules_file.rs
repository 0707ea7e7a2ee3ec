//! The rules file: read at start, read again whenever it changes.
//!
//! Owns the watch on the file's directory. The directory, because editors and Kubernetes replace a file (or the link to
//! it) instead of writing into it. It hands out texts that differ from the one before; whether they can be used is
//! decided by whoever applies them.

use std::{
    io,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use sluice_protocol::rules::{MAX_FILE_BYTES, RuleFile, RulesError};

/// Why there are no rules from a file.
#[derive(Debug, thiserror::Error)]
pub enum RulesFileError {
    /// It cannot be read.
    #[error("cannot read the rules file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It can be read but not used.
    #[error("the rules file {} cannot be used", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        #[source]
        source: RulesError,
    },
    /// Its directory cannot be watched.
    #[error("cannot watch {} for changes of the rules file", directory.display())]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A rules file under watch.
pub struct RulesFile {
    path: PathBuf,
    /// What was read last, so that touching the file is no change.
    last: Result<String, io::ErrorKind>,
    events: EventStream<[u8; 4096]>,
}

// === impl RulesFile ===

impl RulesFile {
    /// Begins to watch `path` and reads it.
    ///
    /// # Errors
    /// When it cannot be watched, read or used.
    pub fn open(path: &Path) -> Result<(Self, RuleFile), RulesFileError> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let events =
            watch(directory).map_err(|source| RulesFileError::Watch { directory: directory.to_owned(), source })?;
        let mut file = Self { path: path.to_owned(), last: Ok(String::new()), events };
        let rules = file.load()?;
        Ok((file, rules))
    }

    /// Waits for a change and reads it. Cancel safe.
    ///
    /// # Errors
    /// When the new version cannot be read or used; the next call waits for the next change.
    pub async fn changed(&mut self) -> Result<RuleFile, RulesFileError> {
        loop {
            if self.events.next().await.is_none() {
                std::future::pending::<()>().await;
            }
            let before = std::mem::replace(&mut self.last, Ok(String::new()));
            let result = self.load();
            if self.last != before {
                return result;
            }
        }
    }

    fn load(&mut self) -> Result<RuleFile, RulesFileError> {
        match read(&self.path) {
            Ok(text) => {
                let parsed = RuleFile::parse(&text);
                self.last = Ok(text);
                parsed.map_err(|source| RulesFileError::Content { path: self.path.clone(), source })
            }
            Err(source) => {
                self.last = Err(source.kind());
                Err(RulesFileError::Read { path: self.path.clone(), source })
            }
        }
    }
}

impl std::fmt::Debug for RulesFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulesFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn watch(directory: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(directory, mask)?;
    inotify.into_event_stream([0; 4096])
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    // One byte more than allowed, so that the parser can say that it is too large.
    std::fs::File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}
