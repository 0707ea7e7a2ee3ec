use super::*;

/// The key of RFC 8410, section 10.3; its hash as OpenSSL gives it.
const RFC8410: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const RFC8410_HASH: &str = "sha256:a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f";

fn store(path: &Path, contents: &str) {
    std::fs::write(path, contents).unwrap();
    restrict(path, 0o600);
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(not(unix))]
fn restrict(_: &Path, _: u32) {}

#[test]
fn a_hash_is_what_openssl_computes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    store(&path, RFC8410);
    assert_eq!(Identity::load_or_create(&path).unwrap().hash().to_string(), RFC8410_HASH);
}

#[test]
fn a_hash_survives_text_and_json() {
    let hash = Identity::generate().unwrap().hash();
    assert_eq!(hash.to_string().parse::<KeyHash>().unwrap(), hash);
    let json = serde_json::to_string(&hash).unwrap();
    assert_eq!(json, format!("\"{hash}\""));
    assert_eq!(serde_json::from_str::<KeyHash>(&json).unwrap(), hash);
    let upper = format!("sha256:{}", hash.to_string()[PREFIX.len()..].to_uppercase());
    assert_eq!(upper.parse::<KeyHash>().unwrap(), hash, "case of the digits does not matter");
}

#[test]
fn what_is_no_hash_is_refused() {
    let digits = &RFC8410_HASH[PREFIX.len()..];
    assert_eq!(digits.parse::<KeyHash>(), Err(ParseHashError::Prefix));
    assert_eq!(format!("sha512:{digits}").parse::<KeyHash>(), Err(ParseHashError::Prefix));
    for wrong in ["", "00", &digits[1..], &format!("{digits}0"), &digits.replace('a', "g"), &digits.replace("a1", "ä")]
    {
        assert_eq!(format!("sha256:{wrong}").parse::<KeyHash>(), Err(ParseHashError::Digits), "{wrong}");
    }
    assert!(serde_json::from_str::<KeyHash>("17").unwrap_err().to_string().contains("64 hexadecimal digits"));
}

#[test]
fn two_new_keys_differ() {
    assert_ne!(Identity::generate().unwrap().hash(), Identity::generate().unwrap().hash());
}

#[test]
fn a_secret_makes_the_same_key_and_something_else_makes_none() {
    let (identity, secret) = Identity::generate_with_secret().unwrap();
    let same = Identity::from_secret(&secret).unwrap();
    assert_eq!((same.hash(), same.reset_key), (identity.hash(), identity.reset_key));
    assert!(matches!(Identity::from_secret(&secret[1..]), Err(KeyError::HandedOn(_))));
}

#[test]
fn a_missing_file_is_made_with_its_folder_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/key");
    let made = Identity::load_or_create(&path).unwrap();
    assert_eq!(Identity::load_or_create(&path).unwrap().hash(), made.hash());
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    let beside: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["key"], "no draft is left behind");
}

#[cfg(unix)]
#[test]
fn a_new_file_is_private_and_an_exposed_one_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/key");
    let hash = Identity::load_or_create(&path).unwrap().hash();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    for exposed in [0o640, 0o604, 0o644, 0o620] {
        restrict(&path, exposed);
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode, .. } if mode == exposed), "{error}");
        assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
    }
    restrict(&path, 0o400);
    assert_eq!(Identity::load_or_create(&path).unwrap().hash(), hash);
}

#[test]
fn files_with_something_else_are_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let p256 =
        "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n";
    let refuse = |contents: &str| {
        store(&path, contents);
        let error = Identity::load_or_create(&path).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        error
    };
    assert!(matches!(refuse(""), KeyError::Pem { .. }));
    assert!(matches!(refuse("hello\n"), KeyError::Pem { .. }));
    assert!(matches!(refuse(&RFC8410.replace("PRIVATE", "PUBLIC")), KeyError::Label { .. }));
    assert!(matches!(refuse(p256), KeyError::Unusable { .. }));
}

#[test]
fn a_path_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    store(&file, "");
    let below = file.join("key");
    let error = Identity::load_or_create(&below).unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    assert!(matches!(Identity::load_or_create(folder.path()), Err(KeyError::Read { .. } | KeyError::Exposed { .. })));
}

#[test]
fn first_starts_at_once_agree_on_one_key() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = folder.path().join(round.to_string());
        let barrier = std::sync::Barrier::new(4);
        let hashes = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                Identity::load_or_create(&path).unwrap().hash()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let identity = Identity::generate().unwrap();
    assert_eq!(format!("{identity:?}"), format!("Identity {{ hash: {}, .. }}", identity.hash()));
}
