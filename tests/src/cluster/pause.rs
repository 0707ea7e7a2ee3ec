//! The image that holds a pod's namespaces.

use std::path::PathBuf;

use anyhow::Result;

use super::{config::PAUSE_IMAGE, folder::Folder};
use crate::{
    binaries,
    image::{Image, Program},
};

/// Writes the image below the cluster's folder.
pub(crate) fn image(folder: &Folder) -> Result<PathBuf> {
    let path = folder.config("pause.tar");
    let program = Program::new(binaries::find("sluice-pause")?, "/pause");
    Image::new(PAUSE_IMAGE, program).save(&path)?;
    Ok(path)
}
