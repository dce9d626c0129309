//! Writes the archive format of the kernel's initial file system: cpio, "newc" (kernel documentation,
//! driver-api/early-userspace/buffer-format). Directories, files and symbolic links; everything belongs to root.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// An archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds the directory `path` (without a leading slash) and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        let ends = path
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        for path in ends.map(|end| &path[..end]).filter(|path| !path.is_empty()) {
            if self.directories.insert(path.to_owned()) {
                self.entry(path, DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file with its permission bits, and the directories above it.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path, FILE | mode, content);
    }

    /// Adds a symbolic link, and the directories above it.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entry(path, LINK, target.as_bytes());
    }

    /// The complete archive. The kernel takes several, one after the other.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        // Archives that follow another start at a multiple of 4; disks like 512.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let length = u32::try_from(content.len()).expect("the format ends at 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("a path is short");
        let links = 1 + u32::from(mode == DIRECTORY);
        // magic, inode, mode, uid, gid, links, mtime, size, device ×2, special device ×2, name's size, no checksum
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            length,
            0,
            0,
            0,
            0,
            name_length,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_of_hexadecimal_fields_with_name_and_content_aligned() {
        let mut archive = Archive::default();
        archive.file("etc/motd", 0o644, b"hello");
        let bytes = archive.finish();
        let directory = b"070701000000010000\x34\x31\x45\x44";
        assert_eq!(bytes[..18 + 4], directory[..]);
        // 110 bytes of header, "etc" and its zero: 114, so 116 where the file's header starts.
        assert_eq!(&bytes[110..116], b"etc\0\0\0");
        let file = String::from_utf8_lossy(&bytes[116..226]).into_owned();
        assert_eq!(&file[..22], "07070100000002000081A4");
        assert_eq!(&file[54..62], "00000005", "size");
        assert_eq!(&file[94..102], "00000009", "size of the name");
        assert_eq!(&bytes[226..236], b"etc/motd\0\0");
        assert_eq!(&bytes[236..244], b"hello\0\0\0");
        assert_eq!(&bytes[244..250], b"070701");
        assert_eq!(bytes.len(), 512);
    }

    #[test]
    fn directories_come_before_their_content_and_once() {
        let mut archive = Archive::default();
        archive.link("usr/lib", "../lib");
        archive.file("usr/bin/true", 0o755, b"");
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        let names: Vec<&str> = text
            .split("070701")
            .skip(1)
            .map(|e| e[104..].split('\0').next().expect("a name"))
            .collect();
        assert_eq!(
            names,
            ["usr", "usr/lib", "usr/bin", "usr/bin/true", "TRAILER!!!"]
        );
    }
}
