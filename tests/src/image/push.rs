//! Sends an image to a registry.
//!
//! Credentials are those of `docker login` (`~/.docker/config.json`, or where `DOCKER_CONFIG` says), as far as they stand in
//! that file. Registries on the machine itself are spoken to without TLS, as docker does.

use std::{env, fs, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use serde_json::Value;

use super::Packed;

/// Pushes the image under the name `REGISTRY/NAME:TAG`. Returns the name with the digest that the registry knows it by.
pub async fn push(image: &Packed, name: &str) -> Result<String> {
    // One provider for the whole process; whoever else has set one has set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let reference: Reference = name.parse().with_context(|| format!("{name:?} is no image name"))?;
    let registry = reference.resolve_registry();
    let protocol = if is_local(registry) { ClientProtocol::Http } else { ClientProtocol::Https };
    let client = Client::new(ClientConfig { protocol, ..ClientConfig::default() });
    let auth = credentials(registry)?;
    let context = || format!("pushing to {registry}");
    client.auth(&reference, &auth, RegistryOperation::Push).await.with_context(context)?;
    for blob in [&image.layer, &image.config] {
        if !client.blob_exists(&reference, blob.digest()).await.with_context(context)? {
            Box::pin(client.push_blob(&reference, blob.content().to_vec(), blob.digest()))
                .await
                .with_context(context)?;
        }
    }
    // As it is and not parsed and written again: the digest is the one that the image has everywhere.
    let media_type = image.manifest.media_type().parse().context("the manifest's media type")?;
    let content = image.manifest.content().to_vec();
    Box::pin(client.push_manifest_raw(&reference, content, media_type)).await.with_context(context)?;
    Ok(format!("{}/{}@{}", reference.registry(), reference.repository(), image.digest()))
}

/// Whether the registry is on this machine.
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn credentials(registry: &str) -> Result<RegistryAuth> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".docker"));
    let Some(folder) = env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let path = folder.join("config.json");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(RegistryAuth::Anonymous) };
    let config: Value = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let known = in_config(&config, registry).with_context(|| format!("credentials in {}", path.display()))?;
    Ok(known.map_or(RegistryAuth::Anonymous, |(user, password)| RegistryAuth::Basic(user, password)))
}

fn in_config(config: &Value, registry: &str) -> Result<Option<(String, String)>> {
    // docker.io is known under the address that it had first.
    let name = if registry.ends_with("docker.io") { "https://index.docker.io/v1/" } else { registry };
    let Some(encoded) = config["auths"][name]["auth"].as_str() else { return Ok(None) };
    let text = String::from_utf8(STANDARD.decode(encoded)?)?;
    let (user, password) = text.split_once(':').context("no colon in them")?;
    Ok(Some((user.to_owned(), password.to_owned())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        assert!(["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "localhost"].into_iter().all(is_local));
        assert!(!["ghcr.io", "registry.example:5000", "10.0.0.1:5000", "localhost.example"].into_iter().any(is_local));
    }

    #[test]
    fn credentials_are_those_of_docker_login() {
        let config = json!({ "auths": { "ghcr.io": { "auth": STANDARD.encode("adam:pass:word") }, "b.example": {} } });
        let known = in_config(&config, "ghcr.io").unwrap();
        assert_eq!(known, Some(("adam".to_owned(), "pass:word".to_owned())));
        assert_eq!(in_config(&config, "b.example").unwrap(), None);
        in_config(&json!({ "auths": { "c": { "auth": "?" } } }), "c").unwrap_err();
    }
}
