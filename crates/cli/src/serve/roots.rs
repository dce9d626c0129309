//! Which files may be served: those beneath the served directories, however a path is written.
//!
//! A request names an absolute path. It must begin with a served directory (as it was given, or with its symbolic links
//! resolved); the rest is resolved by the kernel beneath that directory (`openat2` with `RESOLVE_BENEATH`), which refuses
//! `..` and symbolic links that lead out of it, also while somebody is renaming things. Where there is no `openat2` the
//! rest is walked component by component and symbolic links are refused altogether.
//!
//! Files are examined before they are opened for reading, since opening a device or a pipe has effects.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::protocol::{Failure, FailureKind, Kind, Metadata};

/// The served directories (and files).
#[derive(Debug)]
pub(crate) struct Roots(Vec<Root>);

#[derive(Debug)]
struct Root {
    /// As given, made absolute.
    given: PathBuf,
    /// With symbolic links resolved.
    real: PathBuf,
    /// The directory; of a single file, the one it is in.
    anchor: OwnedFd,
    /// The name of the single file.
    single: Option<PathBuf>,
}

impl Roots {
    /// Opens directories to be served.
    ///
    /// # Errors
    /// What opening answers; `InvalidInput` for a device, a pipe or a socket.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let open = |path: &PathBuf| Root::open(path).map_err(|error| (path.clone(), error));
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The served paths, absolute, as given.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|root| root.given.as_path())
    }

    /// What a path names.
    ///
    /// # Errors
    /// [`Failure`] for the client.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Metadata, Failure> {
        let (root, rest) = self.find(path)?;
        let found = root
            .at(rest, OFlags::PATH)
            .map_err(|error| failure(path, error))?;
        stat(found.as_fd()).map_err(|error| failure(path, error))
    }

    /// Opens a regular file or a directory for reading.
    ///
    /// # Errors
    /// [`Failure`] for the client.
    pub(super) fn read(&self, path: &[u8]) -> Result<(File, Metadata), Failure> {
        let (root, rest) = self.find(path)?;
        let failure = |error| failure(path, error);
        let found = root.at(rest, OFlags::PATH).map_err(failure)?;
        if stat(found.as_fd()).map_err(failure)?.kind == Kind::Special {
            return Err(special(path));
        }
        // Should it be replaced by a pipe just now: the flag keeps us from waiting for its writer.
        let opened = root
            .at(rest, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(failure)?;
        let metadata = stat(opened.as_fd()).map_err(failure)?;
        if metadata.kind == Kind::Special {
            return Err(special(path));
        }
        Ok((File::from(opened), metadata))
    }

    /// The served directory that a path begins with, and the rest of the path.
    fn find<'a>(&self, path: &'a [u8]) -> Result<(&Root, &'a Path), Failure> {
        let asked = Path::new(OsStr::from_bytes(path));
        if path.contains(&0) || !asked.is_absolute() {
            return Err(Failure::new(
                FailureKind::Other,
                format!("{} is no absolute path", shown(path)),
            ));
        }
        let beneath =
            |root: &Root, rest: &Path| root.single.is_none() || rest.as_os_str().is_empty();
        let found = self.0.iter().find_map(|root| {
            let rest = asked
                .strip_prefix(&root.given)
                .or_else(|_| asked.strip_prefix(&root.real));
            rest.ok()
                .filter(|rest| beneath(root, rest))
                .map(|rest| (root, rest))
        });
        found.ok_or_else(|| outside(path))
    }
}

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        let given = std::path::absolute(path)?;
        let real = path.canonicalize()?;
        let found = openat(CWD, &real, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let (anchor, single) = match stat(found.as_fd())?.kind {
            Kind::Directory => (found, None),
            Kind::File => {
                let name = real.file_name().expect("a file has a name");
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let parent = real.parent().expect("a file is in a directory");
                (
                    openat(CWD, parent, flags, Mode::empty())?,
                    Some(name.into()),
                )
            }
            Kind::Symlink | Kind::Special => {
                let what = "neither a directory nor a regular file";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        };
        Ok(Self {
            given,
            real,
            anchor,
            single,
        })
    }

    fn at(&self, rest: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = match &self.single {
            Some(name) => name,
            None if rest.as_os_str().is_empty() => Path::new("."),
            None => rest,
        };
        let flags = flags | OFlags::CLOEXEC;
        match by_kernel(self.anchor.as_fd(), path, flags) {
            Err(Errno::NOSYS | Errno::PERM) => by_walking(self.anchor.as_fd(), path, flags),
            answer => answer,
        }
    }
}

#[cfg(target_os = "linux")]
fn by_kernel(anchor: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    // A rename at the same time makes the kernel unsure; it asks to be asked again.
    const ATTEMPTS: usize = 64;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS {
        match openat2(anchor, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn by_kernel(_: BorrowedFd<'_>, _: &Path, _: OFlags) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// Opens one component after the other, following no symbolic link.
fn by_walking(anchor: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut components = path.components().peekable();
    let mut here: Option<OwnedFd> = None;
    loop {
        let name = match components.next() {
            Some(Component::Normal(name)) => name,
            Some(Component::CurDir) => OsStr::new("."),
            _ => return Err(Errno::XDEV),
        };
        let directory = here.as_ref().map_or(anchor, |here| here.as_fd());
        if components.peek().is_none() {
            return openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        here = Some(openat(directory, name, flags, Mode::empty())?);
    }
}

fn stat(file: BorrowedFd<'_>) -> Result<Metadata, Errno> {
    fstat(file).map(|stat| Metadata::from(&stat))
}

/// How a client's path is written in messages.
pub(super) fn shown(path: &[u8]) -> String {
    Path::new(OsStr::from_bytes(path)).display().to_string()
}

pub(super) fn failure(path: &[u8], error: Errno) -> Failure {
    let path_shown = shown(path);
    let (kind, message) = match error {
        Errno::NOENT => (
            FailureKind::NotFound,
            format!("{path_shown}: no such file on the server"),
        ),
        Errno::NOTDIR => (
            FailureKind::NotFound,
            format!("{path_shown}: a part of the path is no directory"),
        ),
        Errno::ACCESS | Errno::PERM => (
            FailureKind::Denied,
            format!("{path_shown}: permission denied to the process that serves it"),
        ),
        Errno::XDEV | Errno::LOOP => return outside(path),
        Errno::NXIO | Errno::NODEV => return special(path),
        error => (
            FailureKind::Other,
            format!("{path_shown}: {}", io::Error::from(error)),
        ),
    };
    Failure::new(kind, message)
}

fn outside(path: &[u8]) -> Failure {
    let message = format!("{} is not in a served directory", shown(path));
    Failure::new(FailureKind::Outside, message)
}

fn special(path: &[u8]) -> Failure {
    let message = format!("{} is neither a regular file nor a directory", shown(path));
    Failure::new(FailureKind::Special, message)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `base/served/{file, inner/deep, in -> inner/deep, out -> ../secret, abs -> base/secret, up -> ..}` and `base/secret`.
    fn tree() -> (tempfile::TempDir, PathBuf, Roots) {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().canonicalize().unwrap();
        let served = real.join("served");
        fs::create_dir_all(served.join("inner")).unwrap();
        fs::write(served.join("file"), "file").unwrap();
        fs::write(served.join("inner/deep"), "deep").unwrap();
        fs::write(real.join("secret"), "secret").unwrap();
        symlink("inner/deep", served.join("in")).unwrap();
        symlink("../secret", served.join("out")).unwrap();
        symlink(real.join("secret"), served.join("abs")).unwrap();
        symlink("..", served.join("up")).unwrap();
        let roots = Roots::open(std::slice::from_ref(&served)).unwrap();
        (base, served, roots)
    }

    fn content(roots: &Roots, path: &Path) -> Result<String, FailureKind> {
        let (file, _) = roots
            .read(path.as_os_str().as_bytes())
            .map_err(|failure| failure.kind)?;
        Ok(io::read_to_string(file).unwrap())
    }

    #[test]
    fn what_is_beneath_is_read_by_any_spelling() {
        let (_base, served, roots) = tree();
        for (path, expected) in [
            ("file", "file"),
            ("inner/deep", "deep"),
            ("inner/../file", "file"),
            ("./inner//deep", "deep"),
            ("in", "deep"),
        ] {
            assert_eq!(
                content(&roots, &served.join(path)).as_deref(),
                Ok(expected),
                "{path}"
            );
        }
        assert_eq!(
            roots.stat(served.as_os_str().as_bytes()).unwrap().kind,
            Kind::Directory
        );
    }

    #[test]
    fn what_leads_out_is_refused() {
        let (base, served, roots) = tree();
        let secret = base.path().canonicalize().unwrap().join("secret");
        for path in [
            served.join("../secret"),
            served.join("inner/../../secret"),
            served.join("out"),
            served.join("abs"),
            served.join("up/secret"),
            secret,
            "/etc/passwd".into(),
            "/".into(),
            PathBuf::from(format!("{}-not", served.display())),
        ] {
            assert_eq!(
                content(&roots, &path),
                Err(FailureKind::Outside),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn walking_confines_as_the_kernel_does() {
        let (_base, _served, roots) = tree();
        let anchor = roots.0[0].anchor.as_fd();
        let walk = |path: &str| by_walking(anchor, Path::new(path), OFlags::RDONLY);
        assert!(walk("inner/deep").is_ok());
        assert!(walk(".").is_ok());
        for path in [
            "../secret",
            "inner/../../secret",
            "/etc/passwd",
            "out",
            "abs",
            "up/secret",
            "in",
        ] {
            assert!(walk(path).is_err(), "{path} was opened");
        }
    }

    #[test]
    fn a_path_that_is_none_is_refused() {
        let (_base, served, roots) = tree();
        let mut with_nul = served.as_os_str().as_bytes().to_vec();
        with_nul.extend(b"/fi\0le");
        for path in [&b"file"[..], b"", &with_nul] {
            assert!(roots.stat(path).is_err(), "{path:?}");
        }
        let missing = served.join("missing");
        assert_eq!(content(&roots, &missing), Err(FailureKind::NotFound));
        assert_eq!(
            content(&roots, &served.join("file/x")),
            Err(FailureKind::NotFound)
        );
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let (_base, served, roots) = tree();
        let pipe = served.join("pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(content(&roots, &pipe), Err(FailureKind::Special));
        assert!(Roots::open(&[pipe]).is_err());
    }

    #[test]
    fn a_single_file_is_served_alone() {
        let (_base, served, _) = tree();
        let file = served.join("file");
        let roots = Roots::open(std::slice::from_ref(&file)).unwrap();
        assert_eq!(content(&roots, &file).as_deref(), Ok("file"));
        assert_eq!(
            content(&roots, &served.join("inner/deep")),
            Err(FailureKind::Outside)
        );
        assert!(content(&roots, &file.join("x")).is_err());
    }

    #[test]
    fn a_served_directory_is_also_known_by_the_link_it_was_given_as() {
        let (base, served, _) = tree();
        let link = base.path().join("link");
        symlink(&served, &link).unwrap();
        let roots = Roots::open(std::slice::from_ref(&link)).unwrap();
        assert_eq!(content(&roots, &link.join("file")).as_deref(), Ok("file"));
        assert_eq!(content(&roots, &served.join("file")).as_deref(), Ok("file"));
    }
}
