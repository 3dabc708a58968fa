//! The section `sharing.timeSlicing`.

use super::node::{Content, Node};
use super::walk::Walk;
use crate::cli::values::resource_name;
use crate::config::sharing::{DeviceName, SharedDevices, SharedResource, Sharing};

/// What the keys of one resource say, as far as it is right.
#[derive(Default)]
struct Entry {
    name: Option<String>,
    rename: Option<String>,
    devices: SharedDevices,
    replicas: Option<u32>,
}

impl Walk {
    /// Takes over what is shared, if all of it is right.
    pub(super) fn time_slicing(&mut self, at: &str, value: &Node) {
        let (mut by_default, mut fail, mut list) = (false, false, None);
        self.entries(at, value, |walk, at, key, value| match key {
            "renameByDefault" => by_default = walk.boolean(at, value),
            "failRequestsGreaterThanOne" => fail = walk.boolean(at, value),
            "resources" => list = Some((at.to_owned(), value.clone())),
            _ => walk.fault(value, at, "is not known"),
        });
        let Some((at, list)) = list else { return };
        let items = match &list.content {
            Content::Nothing => return,
            Content::List(items) => items,
            _ => return self.fault(&list, &at, format!("is {}, not a list", list.kind())),
        };
        let resources = items.iter().enumerate().filter_map(|(number, item)| {
            let item = Node {
                line: if item.line > 0 { item.line } else { list.line },
                ..item.clone()
            };
            self.shared_resource(&format!("{at}[{number}]"), by_default, &item)
        });
        match Sharing::new(fail, resources.collect()) {
            Ok(sharing) => self.set_sharing(sharing),
            Err(faults) => {
                for fault in faults {
                    self.fault(&list, &at, fault);
                }
            }
        }
    }

    fn shared_resource(
        &mut self,
        at: &str,
        by_default: bool,
        value: &Node,
    ) -> Option<SharedResource> {
        let before = self.faults_found();
        let mut entry = Entry::default();
        self.entries(at, value, |walk, at, key, value| match key {
            "name" => entry.name = walk.word(at, value),
            "rename" if value.content == Content::Nothing => {}
            "rename" => entry.rename = walk.word(at, value),
            "devices" => entry.devices = walk.shared_devices(at, value),
            "replicas" => entry.replicas = walk.number(at, value),
            _ => walk.fault(value, at, "is not known"),
        });
        if self.faults_found() > before {
            return None;
        }
        let (Some(name), Some(replicas)) = (entry.name, entry.replicas) else {
            self.fault(value, at, "has no name, or no number of replicas");
            return None;
        };
        let rename = entry.rename.as_deref();
        let shared = SharedResource::new(&name, rename, by_default, entry.devices, replicas);
        let shared = shared.and_then(|shared| {
            for name in [shared.name(), shared.shared_as()] {
                resource_name(name).map_err(|fault| format!("{name:?} {fault}"))?;
            }
            Ok(shared)
        });
        shared.map_err(|fault| self.fault(value, at, fault)).ok()
    }

    /// `all`, how many, or which.
    fn shared_devices(&mut self, at: &str, value: &Node) -> SharedDevices {
        let Content::List(items) = &value.content else {
            return match value.text() {
                None | Some("all") => SharedDevices::All,
                Some(_) => SharedDevices::Count(self.number(at, value).unwrap_or_default()),
            };
        };
        let names = items.iter().filter_map(|item| {
            let name = item.text().ok_or("has an item that is no value".to_owned());
            let name = name.and_then(DeviceName::parse);
            name.map_err(|fault| self.fault(value, at, fault)).ok()
        });
        SharedDevices::List(names.collect())
    }

    fn word(&mut self, at: &str, value: &Node) -> Option<String> {
        let text = value.text().filter(|text| !text.is_empty());
        if text.is_none() {
            self.fault(value, at, "is no name");
        }
        text.map(str::to_owned)
    }

    fn number(&mut self, at: &str, value: &Node) -> Option<u32> {
        let number = value.text().and_then(|text| text.parse().ok());
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.fault(value, at, "is not a number from 1");
        }
        number
    }

    fn boolean(&mut self, at: &str, value: &Node) -> bool {
        match value.text() {
            Some("true") => true,
            Some("false") => false,
            _ if value.content == Content::Nothing => false,
            _ => {
                self.fault(value, at, "is not true or false");
                false
            }
        }
    }
}
