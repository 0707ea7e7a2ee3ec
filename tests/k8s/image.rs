//! Images in a real registry.

use std::{net::TcpStream, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use sluice_tests::{
    binaries, eventually,
    image::{Image, Program, push},
};

/// Ends Debian's `docker-registry`, however the test ends.
struct Registry {
    process: std::process::Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.path().join("config.yml");
        let text = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn" },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": address },
        });
        std::fs::write(&config, text.to_string())?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "docker-registry", "serve"])
            .arg(&config)
            .spawn()
            .context("starting docker-registry (package docker-registry)")?;
        let registry = Self { process, address, _folder: folder };
        let listens = || async { TcpStream::connect(&registry.address).map(drop) };
        eventually(Duration::from_secs(20), "the registry listens", listens).await?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "needs Debian's docker-registry: cargo xtask test"]
async fn a_registry_has_the_very_image_that_was_pushed() -> Result<()> {
    let registry = Registry::start().await?;
    let packed = Image::new("sluice.dev/test:1", Program::new(binaries::find("add")?, "/add")).pack()?;
    let name = format!("{}/adam/test:1", registry.address);
    let known_as = Box::pin(push::push(&packed, &name)).await?;
    ensure!(known_as == format!("{}/adam/test@{}", registry.address, packed.digest()), "{known_as}");
    // A second time there is nothing to send, and the result is the same.
    ensure!(Box::pin(push::push(&packed, &name)).await? == known_as);

    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: Reference = name.parse()?;
    let (manifest, digest) = Box::pin(client.pull_image_manifest(&reference, &RegistryAuth::Anonymous)).await?;
    ensure!(digest == packed.digest(), "digest {digest}");
    let mut layer = Vec::new();
    Box::pin(client.pull_blob(&reference, &manifest.layers[0], &mut layer)).await?;
    let size = u64::try_from(layer.len())?;
    ensure!(i64::try_from(size)? == manifest.layers[0].size, "{size} bytes");
    let mut archive = tar::Archive::new(layer.as_slice());
    let paths = archive.entries()?.map(|entry| Ok(entry?.path()?.display().to_string()));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    ensure!(paths.contains(&"add".to_owned()), "{paths:?}");
    Ok(())
}
