//! Where a file is: a path of this machine, or `ringmail://host[:port]/path` of a server.
//!
//! What follows the host is the path as the server's file system has it, byte by byte: nothing is escaped, so `%`, `?` and `#`
//! are ordinary characters.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use fabric::Address;

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// On this machine.
    Local(PathBuf),
    /// With a server.
    Remote {
        /// Where it listens.
        server: Address,
        /// Absolute, in its file system.
        path: Vec<u8>,
    },
}

impl Location {
    /// Reads what a user typed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let Some(rest) = text.as_bytes().strip_prefix(SCHEME.as_bytes()) else {
            return Ok(Self::Local(text.into()));
        };
        let shown = text.display();
        let (server, path) = match rest.iter().position(|&byte| byte == b'/') {
            Some(slash) => rest.split_at(slash),
            None => {
                return Err(format!(
                    "{shown} names no file: expected {SCHEME}host[:port]/path"
                ));
            }
        };
        let server = str::from_utf8(server)
            .ok()
            .filter(|server| !server.is_empty());
        let server = server
            .ok_or_else(|| format!("{shown} names no host: expected {SCHEME}host[:port]/path"))?;
        Ok(Self::Remote {
            server: with_port(server),
            path: path.to_vec(),
        })
    }
}

/// The URL of a file of a server.
pub(crate) fn of(server: &Address, path: &Path) -> OsString {
    let mut url = format!("{SCHEME}{server}").into_bytes();
    url.extend(path.as_os_str().as_bytes());
    OsString::from_vec(url)
}

/// The address of a host, with our port unless it names one.
pub(crate) fn with_port(host: &str) -> Address {
    let has_port = match host.rfind(']') {
        Some(bracket) => host[bracket..].contains(':'),
        None => host.contains(':'),
    };
    if has_port {
        return host.into();
    }
    format!("{host}:{PORT}").into()
}

const SCHEME: &str = "ringmail://";

/// Where `ringmail serve` listens if nobody says otherwise.
pub(crate) const PORT: u16 = 7471;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, String> {
        Location::parse(OsStr::new(text))
    }

    #[test]
    fn a_url_names_a_server_and_a_path() {
        let remote = |server: &str, path: &str| {
            Ok(Location::Remote {
                server: server.into(),
                path: path.into(),
            })
        };
        assert_eq!(
            parse("ringmail://192.0.2.1:99/a/b c%20?#"),
            remote("192.0.2.1:99", "/a/b c%20?#")
        );
        assert_eq!(parse("ringmail://host/x"), remote("host:7471", "/x"));
        assert_eq!(
            parse("ringmail://[2001:db8::1]/x"),
            remote("[2001:db8::1]:7471", "/x")
        );
        assert_eq!(
            parse("ringmail://[2001:db8::1]:5/x"),
            remote("[2001:db8::1]:5", "/x")
        );
        assert_eq!(
            parse("ringmail:/x"),
            Ok(Location::Local("ringmail:/x".into()))
        );
        assert_eq!(parse("dir/file"), Ok(Location::Local("dir/file".into())));
    }

    #[test]
    fn a_url_without_host_or_path_is_refused() {
        assert!(
            parse("ringmail://host")
                .unwrap_err()
                .contains("names no file")
        );
        assert!(
            parse("ringmail:///path")
                .unwrap_err()
                .contains("names no host")
        );
    }
}
