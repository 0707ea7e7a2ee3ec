//! Container images, made without a container engine: a program, the shared libraries it takes, and nothing else.
//!
//! An image is a list of programs and where they stand in it. It becomes an OCI image layout in a tar file, which
//! containerd, docker, podman, kind, k3d and minikube load, or goes to a registry. The same programs and libraries give the same bytes,
//! whenever and by whomever they are packed.
//!
//! Runs anywhere that has `ldd`. Does not build the programs.

mod layer;
mod layout;
mod libraries;

pub mod push;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use layout::Blob;

/// The media types of an image's parts.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Who containers run as, where a pod says nothing else: nobody's id on every distribution.
const USER: &str = "65532:65532";

/// A program in an image.
#[derive(Clone, Debug)]
pub struct Program {
    binary: PathBuf,
    place: String,
}

/// An image about to be made.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    programs: Vec<Program>,
    user: String,
}

/// An image's parts, ready to be written or pushed.
#[derive(Debug)]
pub struct Packed {
    name: String,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layer: Blob,
}

// === impl Program ===

impl Program {
    /// A program of this machine, and its absolute path in the image.
    pub fn new(binary: impl Into<PathBuf>, place: &str) -> Self {
        Self { binary: binary.into(), place: place.to_owned() }
    }
}

// === impl Image ===

impl Image {
    /// An image that starts this program. The name is a full one, `REGISTRY/NAME:TAG`.
    pub fn new(name: &str, entrypoint: Program) -> Self {
        Self { name: name.to_owned(), programs: vec![entrypoint], user: USER.to_owned() }
    }

    /// Adds another program, which pods start by naming its path.
    #[must_use]
    pub fn with(mut self, program: Program) -> Self {
        self.programs.push(program);
        self
    }

    /// Runs as this user, `UID:GID`, instead of an unprivileged one.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Puts the image together.
    pub fn pack(&self) -> Result<Packed> {
        ensure!(is_full(&self.name), "{:?} is no full image name: REGISTRY/NAME:TAG", self.name);
        let mut files = Vec::new();
        for program in &self.programs {
            ensure!(program.place.starts_with('/'), "{:?} is no absolute path", program.place);
            let binary = fs::read(&program.binary).with_context(|| format!("reading {}", program.binary.display()))?;
            files.push((PathBuf::from(&program.place), binary));
            for library in libraries::of(&program.binary)? {
                let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
                files.push((library, content));
            }
        }
        let layer = Blob::new(LAYER, layer::pack(files)?);
        let entrypoint = self.programs.first().map(|program| &program.place);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": [entrypoint], "User": self.user, "WorkingDir": "/" },
            // One uncompressed layer: what the tar hashes to is also what the blob hashes to.
            "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
        });
        let config = Blob::json(CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        Ok(Packed { name: self.name.clone(), manifest: Blob::json(MANIFEST, &manifest), config, layer })
    }

    /// Puts the image together and writes it to a tar file.
    pub fn save(&self, path: &Path) -> Result<Packed> {
        let packed = self.pack()?;
        packed.save(path)?;
        Ok(packed)
    }
}

// === impl Packed ===

impl Packed {
    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest of its manifest, by which a registry knows it.
    pub fn digest(&self) -> &str {
        self.manifest.digest()
    }

    /// Writes it as an OCI image layout in a tar file, which is a docker archive as well.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tar = layout::pack(self)?;
        // In one step: nobody loads half of it.
        let next = path.with_extension("next");
        fs::write(&next, tar)
            .and_then(|()| fs::rename(&next, path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Bytes of all parts.
    pub fn size(&self) -> usize {
        [&self.manifest, &self.config, &self.layer].iter().map(|blob| blob.content().len()).sum()
    }
}

/// Whether a name has a registry and a tag: without, tools fill in different ones.
fn is_full(name: &str) -> bool {
    let Some((registry, rest)) = name.split_once('/') else { return false };
    let tagged = rest.rsplit('/').next().and_then(|last| last.split_once(':'));
    (registry.contains(['.', ':']) || registry == "localhost")
        && tagged.is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty())
}

/// In the words of Go, in which images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Object with an image's name, as `ctr` and docker look for it.
fn annotations(name: &str) -> Value {
    let tag = name.rsplit(':').next();
    json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag })
}

#[cfg(test)]
mod tests;
