//! What an XID says of the GPU it came from.

pub mod catalogue;
mod shim;

pub use shim::{XidClass, classify};

/// What an XID says, in a few words.
pub fn describe(xid: u64) -> &'static str {
    catalogue::of(xid).map_or("unknown XID", |entry| entry.name)
}

/// What an administrator is to do about an XID, in a few words.
pub fn remedy(xid: u64) -> &'static str {
    const UNKNOWN: &str = "none is known here: see NVIDIA's catalogue of XIDs";
    catalogue::of(xid).map_or(UNKNOWN, |entry| entry.action.remedy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_is_described_with_its_remedy() {
        assert_eq!(describe(79), "GPU has fallen off the bus");
        assert!(remedy(79).starts_with("reboot the node"));
        assert_eq!(describe(9999), "unknown XID");
        assert!(remedy(9999).contains("catalogue"));
    }
}
