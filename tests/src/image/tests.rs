use std::{collections::BTreeMap, io::Read as _};

use super::*;

fn entries(tar: &[u8]) -> BTreeMap<String, (tar::Header, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, (entry.header().clone(), content))
    });
    entries.collect()
}

fn image() -> Image {
    let binary = std::env::current_exe().unwrap();
    Image::new("sluice.dev/test:1", Program::new(&binary, "/bin/test")).with(Program::new(&binary, "/bin/other"))
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let (one, other) = (image().pack().unwrap(), image().pack().unwrap());
    assert_eq!(layout::pack(&one).unwrap(), layout::pack(&other).unwrap());
    let moved = Image::new("sluice.dev/test:1", Program::new(std::env::current_exe().unwrap(), "/bin/elsewhere"));
    assert_ne!(moved.pack().unwrap().digest(), one.digest());
}

#[test]
fn a_layer_has_the_programs_their_libraries_and_no_trace_of_its_maker() {
    let packed = image().pack().unwrap();
    let entries = entries(packed.layer.content());
    let names: Vec<_> = entries.keys().map(String::as_str).collect();
    assert!(names.contains(&"bin/test") && names.contains(&"bin/other"), "{names:?}");
    assert!(names.iter().any(|name| name.contains("libc.so")), "{names:?}");
    assert!(names.iter().any(|name| name.contains("ld-linux")), "{names:?}");
    for (header, _) in entries.values() {
        let told = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
        assert_eq!(told, (0, 0, 0));
    }
    assert_eq!(entries["tmp"].0.mode().unwrap(), 0o1777);
    assert_eq!(entries["bin/test"].0.mode().unwrap(), 0o755);
}

#[test]
fn every_reference_leads_to_a_blob_with_that_digest() {
    let packed = image().pack().unwrap();
    let entries = entries(&layout::pack(&packed).unwrap());
    let json = |path: &str| -> Value { serde_json::from_slice(&entries[path].1).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = format!("blobs/{}", digest.replace(':', "/"));
        assert_eq!(entries[&path].1.len(), usize::try_from(descriptor["size"].as_u64().unwrap()).unwrap());
        path
    };
    let index = json("index.json");
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "sluice.dev/test:1");
    let manifest = json(&blob(&index["manifests"][0]));
    let (config, layer) = (blob(&manifest["config"]), blob(&manifest["layers"][0]));
    assert_eq!(json(&config)["config"]["Entrypoint"], json!(["/bin/test"]));
    let archive = json("manifest.json");
    assert_eq!(archive[0], json!({ "Config": config, "Layers": [layer], "RepoTags": ["sluice.dev/test:1"] }));
}

#[test]
fn names_without_registry_or_tag_are_refused() {
    for name in ["test", "test:1", "sluice.dev/test", "adam/test:1", "sluice.dev:5000/test"] {
        assert!(!is_full(name), "{name}");
    }
    for name in ["sluice.dev/test:1", "localhost:5000/a/b:1", "localhost/a:b"] {
        assert!(is_full(name), "{name}");
    }
}
