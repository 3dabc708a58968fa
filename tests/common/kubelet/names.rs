//! Which resource names the kubelet takes.

const PREFIX_LIMIT: usize = 253;
const NAME_LIMIT: usize = 63;

/// pkg/apis/core/v1/helper/helpers.go, IsExtendedResourceName: a prefix that
/// is not Kubernetes' own, and a label key once "requests." stands before it.
pub(super) fn is_extended_resource_name(name: &str) -> bool {
    if name.contains("kubernetes.io/") || name.starts_with("requests.") {
        return false;
    }
    let Some((prefix, base)) = name.split_once('/') else {
        return false;
    };
    is_dns1123_subdomain(&format!("requests.{prefix}")) && is_label_name(base)
}

/// apimachinery/pkg/api/validate/content/dns.go.
fn is_dns1123_subdomain(value: &str) -> bool {
    value.len() <= PREFIX_LIMIT && value.split('.').all(is_dns1123_label)
}

fn is_dns1123_label(label: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    label.bytes().all(inner)
        && !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// apimachinery/pkg/api/validate/content/kube.go, the part after the slash.
fn is_label_name(name: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    name.len() <= NAME_LIMIT
        && name.bytes().all(inner)
        && edge(name.bytes().next())
        && edge(name.bytes().last())
}
