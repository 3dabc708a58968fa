//! The names of libraries' files.

use super::layout::is_driver_version;

/// The name of a library's file: `libcuda.so.550.163.01` is `libcuda` and
/// `550.163.01`, and `libcuda.so` is `libcuda` and nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LibraryName<'a> {
    pub(super) stem: &'a str,
    pub(super) suffix: &'a str,
}

impl<'a> LibraryName<'a> {
    pub(super) fn parse(file: &'a str) -> Option<Self> {
        let (stem, rest) = file.split_once(".so")?;
        let suffix = match rest.strip_prefix('.') {
            Some(suffix) => suffix,
            None if rest.is_empty() => "",
            None => return None,
        };
        Some(Self { stem, suffix })
    }

    /// The version of the driver that the file says it is of.
    pub(super) fn driver_version(self) -> Option<&'a str> {
        is_driver_version(self.suffix).then_some(self.suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_by_name() {
        let name = LibraryName::parse("libnvidia-nvvm.so.4.0.0").unwrap();
        assert_eq!((name.stem, name.suffix), ("libnvidia-nvvm", "4.0.0"));
        assert_eq!(name.driver_version(), None);
        let name = LibraryName::parse("libcuda.so.550.163.01").unwrap();
        assert_eq!(name.driver_version(), Some("550.163.01"));
        assert_eq!(LibraryName::parse("libcuda.so").unwrap().suffix, "");
        for other in ["libcuda", "libcuda.a", "libcuda.sox"] {
            assert_eq!(LibraryName::parse(other), None, "{other}");
        }
    }
}
