//! `sluice uninstall`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use kube::api::DeleteParams;
use tokio::time::Instant;

use super::manifests;
use super::manifests::Images;
use super::manifests::Manifest;
use crate::cli;
use crate::cluster::Cluster;
use crate::cluster::is_not_found;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Runs `sluice uninstall`.
pub(crate) async fn uninstall(options: &cli::Uninstall) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&options.common.cluster()).await?;
    let deadline = Instant::now() + options.common.timeout;
    eprintln!("removing Sluice from the cluster (context {})", cluster.context);
    // What is in the namespace goes with it.
    let mut found = manifests::all(&Images::of_this_version()?)?;
    found.retain(Manifest::is_of_cluster);
    found.sort_by_key(|manifest| order(manifest.kind()));
    let mut removed = 0;
    for manifest in &found {
        match manifest.api(&cluster).delete(&manifest.name(), &DeleteParams::foreground()).await {
            Ok(_) => removed += 1,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(cluster.explain(&format!("delete the {manifest}"), error)),
        }
        // Intercepts have to be gone before the namespace of whoever looks after them is.
        if manifest.kind() == "CustomResourceDefinition" {
            gone(&cluster, manifest, deadline).await?;
        }
    }
    for manifest in &found {
        gone(&cluster, manifest, deadline).await?;
    }
    match removed {
        0 => eprintln!("nothing of Sluice is left in this cluster"),
        _ => eprintln!("Sluice is removed. Pods that have an agent keep it, idle, until they are restarted."),
    }
    Ok(ExitCode::SUCCESS)
}

/// First what stands in others' way if its server is gone, then the Intercepts, last the namespace.
fn order(kind: &str) -> u8 {
    match kind {
        "MutatingWebhookConfiguration" => 0,
        "CustomResourceDefinition" => 1,
        "Namespace" => 3,
        _ => 2,
    }
}

async fn gone(cluster: &Cluster, manifest: &Manifest, deadline: Instant) -> anyhow::Result<()> {
    let mut said = false;
    loop {
        match manifest.api(cluster).get_opt(&manifest.name()).await {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) => return Err(cluster.explain(&format!("see whether the {manifest} is gone"), error)),
        }
        if Instant::now() >= deadline {
            bail!("not done in time: the {manifest} is still being deleted; run this again, or look at its finalizers");
        }
        if !said {
            eprintln!("waiting until the {manifest} is gone");
            said = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e03_all_that_does_not_go_with_the_namespace_is_deleted_in_order() {
        let mut all = manifests::all(&Images::of_this_version().unwrap()).unwrap();
        all.retain(Manifest::is_of_cluster);
        all.sort_by_key(|manifest| order(manifest.kind()));
        let kinds: Vec<_> = all.iter().map(Manifest::kind).collect();
        assert_eq!(kinds[..2], ["MutatingWebhookConfiguration", "CustomResourceDefinition"]);
        assert_eq!(kinds.last(), Some(&"Namespace"));
        assert!(kinds.contains(&"ClusterRoleBinding"));
    }
}
