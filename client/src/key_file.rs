//! Where a user's key is when nothing else is said.
//!
//! Owns the default path. It must stay the same from run to run, as the key's hash is put into rules. The environment
//! comes in as a function: nothing else of the client reads it.

use std::ffi::OsString;
use std::path::PathBuf;

/// `%APPDATA%\sluice\key` on Windows, `$XDG_CONFIG_HOME/sluice/key` or `$HOME/.config/sluice/key` elsewhere. `None` if
/// none of these variables says where.
pub(crate) fn default_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG specification: a relative path is invalid and to be ignored. Empty counts as unset.
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let configuration = if cfg!(windows) {
        folder("APPDATA")
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))
    };
    Some(configuration?.join("sluice").join("key"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn path(variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        default_path(variable).map(|path| path.display().to_string())
    }

    #[test]
    fn follows_the_users_configuration_folder() {
        assert_eq!(path(&[("HOME", "/home/eve")]).unwrap(), "/home/eve/.config/sluice/key");
        assert_eq!(path(&[("HOME", "/home/eve"), ("XDG_CONFIG_HOME", "/cfg")]).unwrap(), "/cfg/sluice/key");
        assert_eq!(path(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "")]).unwrap(), "/h/.config/sluice/key");
        assert_eq!(path(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "cfg")]).unwrap(), "/h/.config/sluice/key");
        assert_eq!(path(&[]), None);
        assert_eq!(path(&[("HOME", "")]), None);
    }
}
