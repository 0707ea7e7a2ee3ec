//! What is applied to the webhook configuration.

use super::*;

fn configuration(bundles: [Option<&str>; 3]) -> MutatingWebhookConfiguration {
    let mut value = sluice_api::manifests::webhook_configuration();
    for (hook, bundle) in value["webhooks"].as_array_mut().unwrap().iter_mut().zip(bundles) {
        if let Some(bundle) = bundle {
            hook["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode(bundle));
        }
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn nothing_is_applied_when_all_is_well() {
    assert_eq!(bundle_patch(&configuration([Some("pem"); 3]), "pem"), None);
}

#[test]
fn all_of_them_are_applied_when_one_differs() {
    for bundles in [[None; 3], [Some("pem"), Some("old"), Some("pem")]] {
        let patch = bundle_patch(&configuration(bundles), "pem").unwrap();
        let hooks = patch["webhooks"].as_array().unwrap();
        assert_eq!(hooks.iter().map(|hook| &hook["name"]).collect::<Vec<_>>(), object::HOOKS.as_slice());
        for hook in hooks {
            assert_eq!(hook["clientConfig"], json!({"caBundle": BASE64_STANDARD.encode("pem")}));
        }
    }
}

#[test]
fn what_is_not_ours_or_not_there_is_left_alone() {
    let mut configuration = configuration([None; 3]);
    let hooks = configuration.webhooks.as_mut().unwrap();
    hooks.remove(1);
    hooks[1].name = "somebody.example".to_owned();
    let patch = bundle_patch(&configuration, "pem").unwrap();
    assert_eq!(patch["webhooks"].as_array().unwrap().len(), 1);
}
