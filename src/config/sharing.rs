//! Which devices several containers share by turns (time-slicing), as NVIDIA's
//! configuration file has it under `sharing.timeSlicing`.

use std::collections::BTreeSet;

/// So many replicas a device at most: of more, the list of a large node's devices
/// would outgrow what the kubelet takes in one message.
pub const MOST_REPLICAS: u32 = 1024;

/// What the name of a shared resource ends with where it is renamed by default.
const SHARED: &str = ".shared";

/// The domain of a resource that is named without one.
const DOMAIN: &str = "nvidia.com";

/// What is shared. By default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// A container that asks for several replicas is refused: it gets no larger
    /// share by them.
    pub fail_requests_greater_than_one: bool,
    resources: Vec<SharedResource>,
}

/// A resource whose devices are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedResource {
    name: String,
    shared_as: String,
    devices: SharedDevices,
    replicas: u32,
}

/// Which devices of a resource are shared. The others are advertised as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SharedDevices {
    /// All of them.
    #[default]
    All,
    /// So many, the first by index.
    Count(u32),
    /// These.
    List(Vec<DeviceName>),
}

/// A device as a configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// NVML's index of a GPU.
    Gpu(u32),
    /// `0:1`: NVML's index of a GPU, and of a MIG device within it.
    Mig(u32, u32),
    /// The UUID of a GPU or a MIG device.
    Uuid(String),
}

impl Sharing {
    /// These resources.
    ///
    /// # Errors
    ///
    /// In words: every name that is there twice, or stands for two things.
    pub fn new(
        fail_requests_greater_than_one: bool,
        resources: Vec<SharedResource>,
    ) -> Result<Self, Vec<String>> {
        let (mut names, mut shared_as) = (BTreeSet::new(), BTreeSet::new());
        let mut faults = Vec::new();
        for resource in &resources {
            if !names.insert(&resource.name) {
                faults.push(format!("{} is there twice", resource.name));
            } else if !shared_as.insert(&resource.shared_as) {
                let name = &resource.shared_as;
                faults.push(format!("two resources are to be renamed to {name}"));
            }
        }
        let renamed = resources.iter().filter(|resource| resource.is_renamed());
        let taken = renamed.filter(|resource| names.contains(&resource.shared_as));
        faults.extend(taken.map(|resource| {
            let SharedResource {
                name, shared_as, ..
            } = resource;
            format!("{name} is to be renamed to {shared_as}, which is shared itself")
        }));
        if faults.is_empty() {
            Ok(Self {
                fail_requests_greater_than_one,
                resources,
            })
        } else {
            Err(faults)
        }
    }

    /// How this resource is shared, if it is.
    #[must_use]
    pub fn of(&self, resource: &str) -> Option<&SharedResource> {
        self.resources.iter().find(|one| one.name == resource)
    }

    /// What replicas are advertised as, of every resource that is shared.
    pub fn shared_names(&self) -> impl Iterator<Item = &str> {
        self.resources.iter().map(|one| one.shared_as.as_str())
    }
}

impl SharedResource {
    /// So many replicas of these devices of `name`, advertised under another name
    /// where one is given or `rename_by_default` says so.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn new(
        name: &str,
        rename: Option<&str>,
        rename_by_default: bool,
        devices: SharedDevices,
        replicas: u32,
    ) -> Result<Self, String> {
        if !(2..=MOST_REPLICAS).contains(&replicas) {
            return Err(format!(
                "{replicas} replicas are not between 2 and {MOST_REPLICAS}"
            ));
        }
        let name = with_domain(name);
        let shared_as = match rename {
            Some(rename) => with_domain(rename),
            None if rename_by_default => format!("{name}{SHARED}"),
            None => name.clone(),
        };
        Ok(Self {
            name,
            shared_as,
            devices,
            replicas,
        })
    }

    /// The resource that its devices are of.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the replicas are advertised as.
    #[must_use]
    pub fn shared_as(&self) -> &str {
        &self.shared_as
    }

    /// How many of each device.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Which devices.
    #[must_use]
    pub fn devices(&self) -> &SharedDevices {
        &self.devices
    }

    /// Whether the replicas are advertised under another name.
    #[must_use]
    pub fn is_renamed(&self) -> bool {
        self.name != self.shared_as
    }
}

impl DeviceName {
    /// Reads an index, two of them with a colon between, or a UUID.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok();
        let pair = || {
            let (gpu, mig) = text.split_once(':')?;
            Some(Self::Mig(number(gpu)?, number(mig)?))
        };
        if text.starts_with("GPU-") || text.starts_with("MIG-") {
            return Ok(Self::Uuid(text.into()));
        }
        number(text).map(Self::Gpu).or_else(pair).ok_or_else(|| {
            format!("{text:?} is no index such as 0 or 0:1, and no UUID of a GPU or MIG device")
        })
    }
}

fn with_domain(name: &str) -> String {
    if name.contains('/') {
        name.into()
    } else {
        format!("{DOMAIN}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(name: &str, rename: Option<&str>, by_default: bool) -> SharedResource {
        SharedResource::new(name, rename, by_default, SharedDevices::All, 4).unwrap()
    }

    #[test]
    fn a_resource_is_renamed_where_that_is_said() {
        let as_it_is = shared("gpu", None, false);
        assert_eq!(as_it_is.name(), "nvidia.com/gpu");
        assert_eq!(as_it_is.shared_as(), "nvidia.com/gpu");
        let by_default = shared("nvidia.com/gpu", None, true);
        assert_eq!(by_default.shared_as(), "nvidia.com/gpu.shared");
        let by_name = shared("example.com/gpu", Some("turns"), true);
        assert_eq!(by_name.shared_as(), "nvidia.com/turns");
    }

    #[test]
    fn no_name_stands_for_two_things() {
        let faults = |resources: Vec<SharedResource>| Sharing::new(false, resources).unwrap_err();
        let gpu = || shared("gpu", None, false);
        assert_eq!(
            faults(vec![gpu(), gpu()]),
            ["nvidia.com/gpu is there twice"]
        );
        let one_name = ["a", "b"].map(|name| shared(name, Some("c"), false));
        assert_eq!(
            faults(one_name.into()),
            ["two resources are to be renamed to nvidia.com/c"]
        );
        assert_eq!(
            faults(vec![gpu(), shared("mig-1g.10gb", Some("gpu"), false)]).len(),
            2
        );
        let fine = Sharing::new(true, vec![gpu(), shared("mig-1g.10gb", None, true)]).unwrap();
        assert_eq!(fine.of("nvidia.com/gpu"), Some(&gpu()));
        assert_eq!(fine.of("nvidia.com/mig-2g.20gb"), None);
    }

    #[test]
    fn fewer_than_two_replicas_share_nothing() {
        for replicas in [0, 1, MOST_REPLICAS + 1] {
            let shared = SharedResource::new("gpu", None, false, SharedDevices::All, replicas);
            assert!(shared.unwrap_err().contains("not between 2 and"));
        }
    }

    #[test]
    fn devices_are_named_by_index_or_uuid() {
        assert_eq!(DeviceName::parse("3"), Ok(DeviceName::Gpu(3)));
        assert_eq!(DeviceName::parse("0:12"), Ok(DeviceName::Mig(0, 12)));
        let uuid = DeviceName::Uuid("MIG-a".into());
        assert_eq!(DeviceName::parse("MIG-a"), Ok(uuid));
        for bad in ["", "all", "0:", "-1", "0:1:2", "gpu-a"] {
            assert!(DeviceName::parse(bad).is_err(), "{bad}");
        }
    }
}
