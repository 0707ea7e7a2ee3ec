//! The files of an intercept in the user's configuration folder: its key, and the log of one in the background.
//!
//! Owns their names. The key is what lets the same command find its own Intercept again after a crash; it goes when the
//! Intercept does.

use std::path::PathBuf;

use anyhow::Context as _;
use sluice::Identity;

use crate::key_file;

/// The files of one intercept.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    base: String,
}

impl Files {
    /// `sluice/intercepts/NAMESPACE.NAME.*` beside the client's key.
    pub(crate) fn of(namespace: &str, name: &str) -> anyhow::Result<Self> {
        let key = key_file::default_path(|name| std::env::var_os(name)).context("no folder for the key: set HOME")?;
        // A namespace has no dot, so that no two intercepts share a file.
        Ok(Self { folder: key.with_file_name("intercepts"), base: format!("{namespace}.{name}") })
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.base))
    }

    /// Where the background part says what happens.
    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// The key, made if there is none; true if it was made.
    pub(crate) fn identity(&self) -> anyhow::Result<(Identity, bool)> {
        let path = self.file("key");
        let is_new = !path.exists();
        Ok((Identity::load_or_create(&path)?, is_new))
    }

    /// Forgets the key, once nothing in the cluster names it.
    pub(crate) fn forget(&self) {
        if let Err(error) = std::fs::remove_file(self.file("key")) {
            tracing::debug!(%error, "cannot remove the key of a removed intercept");
        }
    }
}
