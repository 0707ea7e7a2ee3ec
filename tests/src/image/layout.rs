//! An image in one tar file: an OCI image layout, with the table of contents of a docker archive beside it.
//!
//! Pure. New tools read `index.json`, docker before version 25 reads `manifest.json`; both name the same blobs.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Packed, annotations, layer::append};
use crate::cluster::hex;

/// A part of an image, known by what it hashes to.
#[derive(Debug)]
pub(crate) struct Blob {
    media_type: &'static str,
    content: Vec<u8>,
    digest: String,
}

// === impl Blob ===

impl Blob {
    pub(super) fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        let hash = ring::digest::digest(&ring::digest::SHA256, &content);
        Self { media_type, digest: format!("sha256:{}", hex(hash.as_ref())), content }
    }

    pub(super) fn json(media_type: &'static str, value: &Value) -> Self {
        // Members in the order of their names, whatever features the library is built with elsewhere.
        let mut value = value.clone();
        value.sort_all_objects();
        Self::new(media_type, value.to_string().into_bytes())
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    pub(crate) fn media_type(&self) -> &'static str {
        self.media_type
    }

    pub(super) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.content.len() })
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

/// The tar file's bytes.
pub(super) fn pack(image: &Packed) -> Result<Vec<u8>> {
    let mut described = image.manifest.descriptor();
    described["annotations"] = annotations(&image.name);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    });
    let archive = json!([{
        "Config": image.config.path(),
        "RepoTags": [image.name],
        "Layers": [image.layer.path()],
    }]);
    let mut blobs = [&image.manifest, &image.config, &image.layer];
    blobs.sort_by_key(|blob| blob.digest.as_str());

    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["blobs", "blobs/sha256"] {
        append(&mut tar, Path::new(folder), tar::EntryType::Directory, 0o755, &[])?;
    }
    for blob in blobs {
        append(&mut tar, Path::new(&blob.path()), tar::EntryType::Regular, 0o644, &blob.content)?;
    }
    let texts = [
        ("index.json", &index),
        ("manifest.json", &archive),
        ("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" })),
    ];
    for (name, value) in texts {
        let text = Blob::json("", value).content;
        append(&mut tar, Path::new(name), tar::EntryType::Regular, 0o644, &text)?;
    }
    Ok(tar.into_inner()?)
}
