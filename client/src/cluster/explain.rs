//! What an error of the Kubernetes API means to the user, and what to do about it.

use anyhow::anyhow;
use kube::Error;
use kube::Resource as _;
use kube::core::Status;
use sluice_api::Intercept;

use super::Cluster;

/// The right that a request lacked, as the API server names it.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    user: String,
    verb: String,
    resource: String,
    namespace: Option<String>,
}

/// Whether the object is not there.
pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Whether the API server has decided against the request, so that it surely did nothing. Time limits and failures
/// within the server leave that open.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Api(status) if (400..500).contains(&status.code) && status.code != 408)
}

impl Cluster {
    /// [`Self::explain`] for a request about Intercepts. Where Sluice is not installed, the roles that allow them are missing
    /// as well, and the API server speaks of the right before it looks at the type.
    pub(crate) async fn explain_intercepts(&self, doing: &str, error: Error) -> anyhow::Error {
        let forbidden = matches!(&error, Error::Api(status) if status.code == 403);
        if forbidden && !self.knows_intercepts().await { self.not_installed() } else { self.explain(doing, error) }
    }

    /// Anything but a clear no counts as a yes. Everybody who may log in may ask.
    async fn knows_intercepts(&self) -> bool {
        let version = Intercept::api_version(&());
        !matches!(self.client.list_api_group_resources(&version).await, Err(error) if is_not_found(&error))
    }

    fn not_installed(&self) -> anyhow::Error {
        anyhow!(
            "Sluice is not installed in this cluster (context {}): run `sluice install`, or ask whoever runs the cluster to \
             do so",
            self.context
        )
    }

    /// `error` in words, for somebody who was `doing` something, such as "create the Intercept web".
    pub(crate) fn explain(&self, doing: &str, error: Error) -> anyhow::Error {
        let (context, url) = (&self.context, &self.url);
        match error {
            Error::Api(status) => self.explain_status(doing, &status),
            Error::Auth(error) => {
                let message = format!(
                    "cannot {doing}: the login that the kubeconfig's context {context} asks for fails: log in again"
                );
                anyhow::Error::new(error).context(message)
            }
            Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => {
                let message = format!(
                    "cannot {doing}: the API server {url} (context {context}) cannot be reached: check that the cluster \
                     runs, your VPN, and --context"
                );
                anyhow!("{}", chained(&message, &error))
            }
            error => anyhow!("{}", chained(&format!("cannot {doing} (context {context})"), &error)),
        }
    }

    fn unknown_user(&self, doing: &str) -> anyhow::Error {
        anyhow!(
            "cannot {doing}: the cluster does not know you (context {}): your login has expired or is wrong, log in again",
            self.context
        )
    }

    fn explain_status(&self, doing: &str, status: &Status) -> anyhow::Error {
        let context = &self.context;
        let message = status.message.trim();
        if let Some(denied) = denied_by_webhook(message) {
            return anyhow!("cannot {doing}: {denied}");
        }
        if message.contains("failed calling webhook") {
            return anyhow!(
                "cannot {doing}: Sluice's control plane does not answer (context {context}): look at `kubectl -n \
                 sluice-system get pods`, or run `sluice install` to repair it. The API server says: {message}"
            );
        }
        match status.code {
            401 => self.unknown_user(doing),
            403 => match missing_right(message) {
                Some(missing) if missing.user == "system:anonymous" => self.unknown_user(doing),
                Some(missing) => anyhow!("cannot {doing}: {}", missing.explain(context)),
                None => anyhow!("cannot {doing}: forbidden (context {context}): {message}"),
            },
            404 if is_unknown_resource(status) => self.not_installed(),
            404 if status.details.as_ref().is_some_and(|details| details.kind == "namespaces") => {
                anyhow!("cannot {doing}: {message} (context {context}): check --namespace")
            }
            _ => anyhow!("cannot {doing} (context {context}): {message}"),
        }
    }
}

impl Missing {
    fn explain(&self, context: &str) -> String {
        let Self { user, verb, resource, namespace } = self;
        let (place, how) = match namespace {
            Some(namespace) => (format!(" in the namespace {namespace}"), "the role `edit` there includes it"),
            None => (" for the whole cluster".to_owned(), "the cluster role `cluster-admin` includes it"),
        };
        format!(
            "you ({user}, context {context}) have no right to {verb} {resource}{place}: ask whoever runs the cluster; {how}"
        )
    }
}

/// A resource type that the API server does not know, as opposed to an object that is not there.
fn is_unknown_resource(status: &Status) -> bool {
    status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

/// `admission webhook "X" denied the request: REASON`, and nothing of that but the reason.
fn denied_by_webhook(message: &str) -> Option<&str> {
    let (before, reason) = message.split_once(" denied the request: ")?;
    before.contains("admission webhook").then_some(reason)
}

/// Reads `... is forbidden: User "U" cannot VERB resource "R" in API group "G" in the namespace "N"`.
fn missing_right(message: &str) -> Option<Missing> {
    let rest = message.split_once("User \"")?.1;
    let (user, rest) = rest.split_once("\" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let quoted = |marker: &str| Some(rest.split_once(marker)?.1.split_once('"')?.0.to_owned());
    let group = quoted("in API group \"").filter(|group| !group.is_empty());
    Some(Missing {
        user: user.to_owned(),
        verb: verb.to_owned(),
        resource: group.map_or_else(|| resource.to_owned(), |group| format!("{resource}.{group}")),
        namespace: quoted("in the namespace \""),
    })
}

/// An error with its causes on one line, without those that repeat what was said.
pub(super) fn chained(message: &str, error: &dyn std::error::Error) -> String {
    let mut text = message.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e04_a_missing_right_is_read_from_the_servers_message() {
        let message = "intercepts.sluice.dev is forbidden: User \"eve\" cannot create resource \"intercepts\" in API group \
                       \"sluice.dev\" in the namespace \"demo\"";
        let missing = missing_right(message).unwrap();
        assert_eq!((missing.user.as_str(), missing.verb.as_str()), ("eve", "create"));
        assert_eq!((missing.resource.as_str(), missing.namespace.as_deref()), ("intercepts.sluice.dev", Some("demo")));
        let said = missing.explain("prod");
        assert!(
            said.contains("(eve, context prod) have no right to create intercepts.sluice.dev in the namespace demo"),
            "{said}"
        );

        let core = "pods \"web\" is forbidden: User \"eve\" cannot get resource \"pods/portforward\" in API group \"\" in \
                    the namespace \"demo\"";
        assert_eq!(missing_right(core).unwrap().resource, "pods/portforward");
        let cluster = "namespaces is forbidden: User \"eve\" cannot create resource \"namespaces\" in API group \"\" at the \
                       cluster scope";
        let said = missing_right(cluster).unwrap().explain("prod");
        assert!(said.contains("create namespaces for the whole cluster"), "{said}");
        assert_eq!(missing_right("exceeded quota"), None);
    }

    #[test]
    fn e04_a_refusal_of_the_webhook_is_shown_without_wrapping() {
        let message = "admission webhook \"intercepts.sluice.dev\" denied the request: overlaps with adam-web of adam";
        assert_eq!(denied_by_webhook(message), Some("overlaps with adam-web of adam"));
        assert_eq!(denied_by_webhook("the server denied the request: no"), None);
    }

    #[test]
    fn e04_an_unknown_type_is_told_from_an_unknown_object() {
        let status = |text: &str| serde_json::from_str::<Status>(text).unwrap();
        assert!(is_unknown_resource(&status(r#"{"code":404,"message":"404 page not found"}"#)));
        let unknown = r#"{"code":404,"reason":"NotFound","message":"the server could not find the requested resource","details":{}}"#;
        assert!(is_unknown_resource(&status(unknown)));
        let object =
            r#"{"code":404,"reason":"NotFound","details":{"name":"web","group":"sluice.dev","kind":"intercepts"}}"#;
        assert!(!is_unknown_resource(&status(object)));
    }
}
