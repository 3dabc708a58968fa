//! What a value must be, and what is made of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::allocate::ways::ANNOTATION_NAME;
use crate::config::HostFolder;
use crate::driver::DriverRoot;
use crate::driver::nodes::DevRoot;

/// Where the host's driver root is mounted in our own manifest, as in NVIDIA's.
const CONTAINER_DRIVER_ROOT: &str = "/driver-root";

pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("is not an absolute path".into())
    }
}

/// A path that may begin where the process runs, as kubectl's users have theirs.
pub(super) fn any_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        Err("is no path".into())
    } else {
        Ok(text.into())
    }
}

pub(super) fn driver_root_paths(
    host: PathBuf,
    container: Option<PathBuf>,
    host_root: Option<&Path>,
) -> DriverRoot {
    let mounted = Path::new(CONTAINER_DRIVER_ROOT);
    let here = container.unwrap_or_else(|| match host_root {
        Some(root) => HostFolder::below(root, &host).here,
        None if mounted.is_dir() => mounted.into(),
        None => host.clone(),
    });
    DriverRoot::new(host, here)
}

/// Where the host's `/` is seen, where no flag says so: a driver root that is
/// the host's own `/` is it.
pub(super) fn host_root(driver_root: &DriverRoot) -> PathBuf {
    if driver_root.host() == Path::new("/") {
        driver_root.here().into()
    } else {
        "/".into()
    }
}

pub(super) fn dev_root_paths(
    host: Option<PathBuf>,
    driver_root: &DriverRoot,
    host_root: &Path,
) -> DevRoot {
    let in_driver_root = driver_root.here().join("dev/nvidiactl").exists();
    let host = host.unwrap_or_else(|| {
        if in_driver_root {
            driver_root.host().into()
        } else {
            "/".into()
        }
    });
    // Below the driver root it is seen where that is seen.
    let here = match host.strip_prefix(driver_root.host()) {
        Ok(rest) if driver_root.here().join(rest).join("dev").is_dir() => {
            driver_root.here().join(rest)
        }
        _ => HostFolder::below(host_root, &host).here,
    };
    DevRoot::new(host, here)
}

/// systemd and runc look into the host's own `/dev/char`, wherever the nodes are.
pub(super) fn with_links(dev_root: DevRoot, named: Option<&Path>, host_root: &Path) -> DevRoot {
    let links = match named {
        Some(folder) => HostFolder {
            host: folder.into(),
            here: folder.into(),
        },
        None if dev_root.host() == Path::new("/") => return dev_root,
        None => HostFolder {
            host: "/dev/char".into(),
            here: host_root.join("dev/char"),
        },
    };
    dev_root.with_links(links)
}

/// An address and port; `:9402` means every address, as Go programs have it.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') {
        format!("0.0.0.0{text}")
    } else {
        text.to_owned()
    };
    full.parse()
        .map_err(|_| "is not an address and port such as 0.0.0.0:9402".into())
}

/// A time of what is done again and again.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(100)..=Duration::from_secs(600);
    time(text)
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "is not a time such as 5s, 500ms or 1m, from 100ms to 10m".into())
}

/// A time that may be none, and a day at most.
pub(super) fn day(text: &str) -> Result<Duration, String> {
    let allowed = Duration::ZERO..=Duration::from_secs(24 * 3600);
    time(text)
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "is not a time such as 90s, 5m or 1h, from 0s to 24h".into())
}

fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u32 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    Some(unit.saturating_mul(number))
}

/// A whole number.
pub(super) fn number(text: &str, allowed: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok();
    number
        .filter(|number| allowed.contains(number))
        .ok_or_else(|| {
            let (least, most) = (allowed.start(), allowed.end());
            format!("is not a whole number from {least} to {most}")
        })
}

/// A node's name (Kubernetes' pkg/apis/core/validation, `ValidateNodeName`).
pub(super) fn node_name(text: &str) -> Result<String, String> {
    if text.len() <= 253 && is_domain(text) {
        Ok(text.into())
    } else {
        Err("is not a node's name, which is a DNS name in lower case".into())
    }
}

/// A name that the kubelet takes for an extended resource (Kubernetes'
/// pkg/apis/core/v1/helper/helpers.go, `IsExtendedResourceName`).
pub(crate) fn resource_name(text: &str) -> Result<String, String> {
    let Some((domain, name)) = text.split_once('/') else {
        return Err("has no domain, as nvidia.com/gpu has".into());
    };
    if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
        return Err("is in the domain kubernetes.io, which the kubelet refuses".into());
    }
    if text.starts_with("requests.") {
        return Err("begins with requests., which the kubelet refuses".into());
    }
    // The kubelet checks the name with "requests." before it: 253 in all.
    if domain.len() > 253 - "requests.".len() || !is_domain(domain) {
        return Err(format!(
            "has a domain, {domain:?}, that is no DNS name in lower case"
        ));
    }
    if name.len() > 63
        || !edges(name, |l| l.is_ascii_alphanumeric())
        || !name.bytes().all(in_a_name)
    {
        return Err(
            "has a name after the slash that is not 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
                .into(),
        );
    }
    Ok(text.into())
}

/// What a CDI annotation's key may begin with: the whole has to be a key that
/// Kubernetes takes (its pkg/api/validation/objectmeta.go, as CDI restates it).
pub(super) fn annotation_prefix(text: &str) -> Result<String, String> {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    if domain.is_some_and(|domain| domain.len() > 253 || !is_domain(domain)) {
        return Err("has no DNS name in lower case before the slash".into());
    }
    let room = 63 - ANNOTATION_NAME;
    let first = name.bytes().next();
    if name.len() > room
        || first.is_some_and(|letter| !letter.is_ascii_alphanumeric())
        || !name.bytes().all(in_a_name)
    {
        return Err(format!(
            "is not a domain and a slash, with at most {room} letters, digits, '-', '_' or '.' behind them, a letter or digit first"
        ));
    }
    Ok(text.into())
}

/// A DNS name in lower case.
fn is_domain(text: &str) -> bool {
    let letter = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let label = |label: &str| {
        let mut letters = label.bytes();
        label.len() <= 63 && edges(label, letter) && letters.all(|l| letter(l) || l == b'-')
    };
    text.split('.').all(label)
}

/// A letter of the name of a resource or an annotation.
fn in_a_name(letter: u8) -> bool {
    letter.is_ascii_alphanumeric() || b"-_.".contains(&letter)
}

/// Words of `all`, separated by commas.
pub(super) fn words<T: Copy + Ord>(
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<BTreeSet<T>, String> {
    text.split(',')
        .map(|text| word(text.trim(), all, name))
        .collect()
}

/// One word of `all`.
pub(super) fn word<T: Copy>(
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    let found = all.iter().find(|one| name(**one) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("is not {}", or(&names))
    })
}

fn or(names: &[&str]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        _ => names.concat(),
    }
}

/// As Go's `strconv.ParseBool` reads it, which NVIDIA's plugin uses.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("is not true or false".into()),
    }
}

/// NVIDIA's plugin knows channel 0 only (its api/config/v1/imex.go).
pub(super) fn imex_channels(text: &str) -> Result<bool, String> {
    match text.trim_matches(['[', ']']) {
        "" => Ok(false),
        "0" => Ok(true),
        _ => Err("is not 0, the only IMEX channel that can be given".into()),
    }
}

fn edges(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    text.bytes().next().is_some_and(&allowed) && text.bytes().last().is_some_and(&allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_are_those_that_the_kubelet_takes() {
        for good in [
            "nvidia.com/gpu",
            "nvidia.com/mig-1g.10gb",
            "a/B_c.d-e",
            "x.y.z/1",
        ] {
            assert_eq!(resource_name(good).as_deref(), Ok(good));
        }
        for bad in [
            "gpu",
            "/gpu",
            "nvidia.com/",
            "nvidia.com/g+u",
            "nvidia.com/a/b",
            "Nvidia.com/gpu",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
            "requests.nvidia.com/gpu",
            "a..b/gpu",
            "nvidia.com/-gpu",
            "-a/gpu",
        ] {
            assert!(resource_name(bad).is_err(), "{bad}");
        }
        assert!(resource_name(&format!("nvidia.com/{}", "g".repeat(64))).is_err());
        assert!(resource_name(&format!("{}/gpu", "a.".repeat(124) + "com")).is_err());
    }

    #[test]
    fn annotations_have_keys_that_kubernetes_takes() {
        for good in ["cdi.k8s.io/", "", "x/", "nvidia.cdi.k8s.io/a-b_c.", "a"] {
            assert_eq!(annotation_prefix(good).as_deref(), Ok(good));
        }
        for bad in ["/", "CDI.k8s.io/", "a/b/c", "a/-b", "a/ ", "-", "cdi..io/"] {
            assert!(annotation_prefix(bad).is_err(), "{bad}");
        }
        let room = 63 - ANNOTATION_NAME;
        assert!(annotation_prefix(&format!("a/{}", "b".repeat(room))).is_ok());
        assert!(annotation_prefix(&format!("a/{}", "b".repeat(room + 1))).is_err());
    }

    #[test]
    fn times_and_addresses() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(day("0s"), Ok(Duration::ZERO));
        assert_eq!(day("24h"), day("86400000ms"));
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "11m",
            "-1s",
            "5 s",
            "99999999999s",
            "5µs",
        ] {
            assert!(interval(bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "25h", "-1s", "1d", "1h30m"] {
            assert!(day(bad).is_err(), "{bad}");
        }
        assert_eq!(address(":9402"), Ok(([0, 0, 0, 0], 9402).into()));
        assert!(address("9402").is_err());
    }

    #[test]
    fn numbers_and_names_of_nodes() {
        assert_eq!(number("100", 0..=100), Ok(100));
        for bad in ["", "0", "1001", "-1", "1.0", "99999999999"] {
            assert!(number(bad, 1..=1000).is_err(), "{bad}");
        }
        assert!(node_name("gpu-1.example.com").is_ok());
        for bad in ["", "Gpu", "gpu_1", "a..b", &"a".repeat(254)] {
            assert!(node_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_driver_root_of_a_container_is_told_from_the_hosts() {
        let here = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(here.path().join("dev")).unwrap();
        std::fs::write(here.path().join("dev/nvidiactl"), "").unwrap();
        let root = driver_root_paths("/run/nvidia/driver".into(), Some(here.path().into()), None);
        let slash = host_root(&root);
        assert_eq!(slash, Path::new("/"));
        let dev = dev_root_paths(None, &root, &slash);
        assert_eq!(dev, DevRoot::new("/run/nvidia/driver", here.path()));
        let elsewhere = dev_root_paths(Some("/".into()), &root, &slash);
        assert_eq!(elsewhere, DevRoot::new("/", "/"));
    }

    #[test]
    fn links_are_in_the_hosts_own_folder() {
        let links = |host: &str, here: &str| HostFolder {
            host: host.into(),
            here: here.into(),
        };
        let host_root = Path::new("/host");
        let slash = DevRoot::new("/", "/host");
        assert_eq!(with_links(slash.clone(), None, host_root), slash);
        let driver = DevRoot::new("/run/nvidia/driver", "/driver-root");
        assert_eq!(
            with_links(driver.clone(), None, host_root),
            driver
                .clone()
                .with_links(links("/dev/char", "/host/dev/char"))
        );
        assert_eq!(
            with_links(driver.clone(), Some(Path::new("/x")), host_root),
            driver.with_links(links("/x", "/x"))
        );
    }

    #[test]
    fn all_of_a_host_is_seen_below_its_root() {
        let here = tempfile::tempdir().unwrap();
        let here = here.path().canonicalize().unwrap();
        std::fs::create_dir_all(here.join("run/nvidia/driver")).unwrap();
        let root = driver_root_paths("/run/nvidia/driver".into(), None, Some(&here));
        assert_eq!(root.here(), here.join("run/nvidia/driver"));
        let dev = dev_root_paths(None, &root, &here);
        assert_eq!(dev, DevRoot::new("/", &here));
        let whole = driver_root_paths("/".into(), Some(here.clone()), None);
        assert_eq!(host_root(&whole), here);
    }
}
