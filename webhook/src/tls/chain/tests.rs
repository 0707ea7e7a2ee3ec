//! Real keys and certificates, checked as verifiers do.

use rustls::crypto::ring;

use super::*;
use crate::tls::rotation::next_step;

const HOST: &str = "sluice-webhook.sluice-system.svc";

fn hosts() -> Vec<String> {
    service_hosts("sluice-webhook", "sluice-system")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn stored(chain: &Chain) -> BTreeMap<String, Vec<u8>> {
    chain.to_data().into_iter().map(|(key, text)| (key, text.into_bytes())).collect()
}

#[test]
fn a_new_chain_is_accepted_under_all_its_names() {
    let chain = Chain::new(now(), &Policy::DEFAULT, &hosts()).unwrap();
    for host in hosts() {
        chain.certified(&host, now(), &provider()).unwrap();
    }
    let other = chain.certified("kubernetes.default.svc", now(), &provider());
    assert!(matches!(other, Err(ChainError::Untrusted(_))));
}

#[test]
fn a_secret_holds_all_of_it() {
    let (now, policy) = (now(), Policy::DEFAULT);
    let first = Chain::new(now, &policy, &hosts()).unwrap();
    assert_eq!(Chain::from_data(&stored(&first)).unwrap(), first);
    let second = first.take(Step::AddSuccessor, now, &policy, &hosts()).unwrap();
    assert_eq!(Chain::from_data(&stored(&second)).unwrap(), second);
    let third = second.take(Step::Promote, now, &policy, &hosts()).unwrap();
    assert_eq!(Chain::from_data(&stored(&third)).unwrap(), third);
    assert_eq!(next_step(&third.inventory(), now, &policy), None);
}

/// Who knows the authorities of one moment accepts the leaf of the next.
#[test]
fn d05_each_step_is_accepted_by_those_who_know_the_one_before() {
    let (now, policy) = (now(), Policy::DEFAULT);
    let mut chain = Chain::new(now, &policy, &hosts()).unwrap();
    for step in
        [Step::RenewLeaf, Step::AddSuccessor, Step::RenewLeaf, Step::Promote, Step::RenewLeaf, Step::DropPrevious]
    {
        let next = chain.take(step, now, &policy, &hosts()).unwrap();
        let mixed = Chain { leaf: next.leaf.clone(), ..chain.clone() };
        mixed.certified(HOST, now, &provider()).unwrap_or_else(|error| panic!("{step:?}: {error:?}"));
        next.certified(HOST, now, &provider()).unwrap_or_else(|error| panic!("{step:?}: {error:?}"));
        chain = next;
    }
    assert_eq!(chain.authorities().matches("BEGIN CERTIFICATE").count(), 1);
}

#[test]
fn what_does_not_belong_together_is_not_served() {
    let (now, policy) = (now(), Policy::DEFAULT);
    let (one, other) = (Chain::new(now, &policy, &hosts()).unwrap(), Chain::new(now, &policy, &hosts()).unwrap());
    let mut foreign_key = one.clone();
    foreign_key.leaf.key.clone_from(&other.leaf.key);
    assert!(matches!(foreign_key.certified(HOST, now, &provider()), Err(ChainError::Mismatch(_))));
    let foreign_leaf = Chain { leaf: other.leaf, ..one.clone() };
    assert!(matches!(foreign_leaf.certified(HOST, now, &provider()), Err(ChainError::Untrusted(_))));
    let late = one.inventory().leaf.until + jiff::SignedDuration::from_secs(1);
    assert!(matches!(one.certified(HOST, late, &provider()), Err(ChainError::Untrusted(_))));
}

#[test]
fn a_secret_that_is_broken_says_where() {
    let whole = stored(&Chain::new(now(), &Policy::DEFAULT, &hosts()).unwrap());
    for entry in ["tls.crt", "tls.key", "ca.crt", "ca.key"] {
        let mut data = whole.clone();
        data.remove(entry);
        assert!(Chain::from_data(&data).unwrap_err().to_string().contains(entry));
    }
    let mut data = whole.clone();
    data.insert("tls.crt".to_owned(), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec());
    assert!(matches!(Chain::from_data(&data), Err(ChainError::Certificate { entry: "tls.crt" })));
    data.insert("tls.crt".to_owned(), vec![0xff]);
    assert!(matches!(Chain::from_data(&data), Err(ChainError::Entry { entry: "tls.crt" })));
}

#[test]
fn keys_stay_out_of_the_log() {
    let chain = Chain::new(now(), &Policy::DEFAULT, &hosts()).unwrap();
    assert!(!format!("{chain:?}").contains("PRIVATE KEY"));
}
