//! Protection domains and memory regions (IBA Vol. 1, 10.2.3 and 10.6).

use std::fmt;
use std::sync::Arc;

use mem::Memory;
use roce::verbs::{Access, Sge};
use roce::wire::Key;

use crate::cq::Cq;
use crate::device::{Device, DeviceLost};
use crate::qp::{Qp, QpInit};
use crate::region::{PdId, REMOTE, Region};
use crate::srq::Srq;

/// A protection domain: queue pairs and regions of one domain may meet. Clones are handles to the same domain.
#[derive(Clone)]
pub struct Pd {
    pub(crate) device: Device,
    pub(crate) id: PdId,
    /// Counts what lives in the domain, for callers that must refuse to free it earlier.
    users: Arc<()>,
}

impl Pd {
    pub(crate) fn new(device: Device, id: PdId) -> Self {
        Self {
            device,
            id,
            users: Arc::new(()),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many handles to the domain there are, those of its objects included.
    #[must_use]
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.users)
    }

    /// Registers all of `memory`. Work and peers name its first byte `iova`, or by its address where that is `None`.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(
        &self,
        memory: Memory,
        iova: Option<u64>,
        access: Access,
    ) -> Result<Mr, RegisterError> {
        check(&memory, access)?;
        let iova = iova.unwrap_or_else(|| memory.addr());
        let region = Region::new(memory.clone(), iova, access, self.id);
        let key = self.device.insert_region(region)?;
        Ok(Mr {
            pd: self.clone(),
            key,
            memory,
            iova,
            access,
        })
    }

    /// Makes a shared receive queue of `depth` receives of up to `max_sge` pieces.
    #[must_use]
    pub fn create_srq(&self, depth: u32, max_sge: usize) -> Srq {
        Srq::new(self.device.clone(), self.id, depth, max_sge)
    }

    /// Makes a queue pair in the reset state.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn create_qp(&self, init: &QpInit<'_>) -> Result<Qp, DeviceLost> {
        Qp::create(self, init)
    }

    /// Whether `cq` belongs to the same device.
    #[must_use]
    pub fn is_of_device(&self, cq: &Cq) -> bool {
        cq.device().is_same(&self.device)
    }
}

impl fmt::Debug for Pd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pd")
            .field("id", &self.id.0)
            .finish_non_exhaustive()
    }
}

/// Why memory was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Peers cannot be allowed to write or use atomics where the owner is not allowed to write (IBA 10.6.3.1).
    #[error("remote write and atomic access need local write access")]
    RemoteWithoutLocal,
    /// Write access to memory that is mapped read-only.
    #[error("the memory is mapped read-only")]
    ReadOnly,
    /// The device is not this process's.
    #[error(transparent)]
    DeviceLost(#[from] DeviceLost),
}

fn check(memory: &Memory, access: Access) -> Result<(), RegisterError> {
    let writes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    if access.intersects(writes) && !access.contains(Access::LOCAL_WRITE) {
        return Err(RegisterError::RemoteWithoutLocal);
    }
    if access.contains(Access::LOCAL_WRITE) && !memory.is_writable() {
        return Err(RegisterError::ReadOnly);
    }
    Ok(())
}

/// A memory region. Dropping it deregisters: when that returns, neither the device nor a peer accesses the memory
/// through it any more.
pub struct Mr {
    pd: Pd,
    key: Key,
    memory: Memory,
    iova: u64,
    access: Access,
}

/// What [`Mr::reregister`] changes; `None` keeps what there was.
#[derive(Debug, Default)]
pub struct MrChange {
    /// Another memory, and the virtual address of its first byte (`None`: its address).
    pub memory: Option<(Memory, Option<u64>)>,
    /// Other rights.
    pub access: Option<Access>,
    /// Another domain of the same device.
    pub pd: Option<Pd>,
}

impl Mr {
    /// The key by which work names the region.
    #[must_use]
    pub fn lkey(&self) -> Key {
        self.key
    }

    /// The key by which peers name the region: the same number. Opens nothing to peers without a remote right.
    #[must_use]
    pub fn rkey(&self) -> Key {
        self.key
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The virtual address of the first byte.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// What may be done with it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether peers have any right to it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.access.intersects(REMOTE)
    }

    /// The domain.
    #[must_use]
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// A piece of the region, for a gather or scatter list: `length` bytes from `offset` on. Whether it lies within
    /// the region is checked when the work is done.
    #[must_use]
    pub fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge {
            addr: self.iova.wrapping_add(offset),
            length,
            lkey: self.key,
        }
    }

    /// Registers anew, with changes, in one step: the old key is dead and the new one works when this returns.
    ///
    /// # Errors
    /// [`RegisterError`]; the region is unchanged.
    pub fn reregister(&mut self, change: MrChange) -> Result<(), RegisterError> {
        let (memory, iova) = match change.memory {
            Some((memory, iova)) => {
                let iova = iova.unwrap_or_else(|| memory.addr());
                (memory, iova)
            }
            None => (self.memory.clone(), self.iova),
        };
        let access = change.access.unwrap_or(self.access);
        let pd = change.pd.unwrap_or_else(|| self.pd.clone());
        check(&memory, access)?;
        let region = Region::new(memory.clone(), iova, access, pd.id);
        let key = self.pd.device.replace_region(self.key, region)?;
        (self.key, self.memory, self.iova, self.access, self.pd) = (key, memory, iova, access, pd);
        Ok(())
    }

    /// Deregisters and returns the memory, of which the device keeps no handle.
    #[must_use]
    pub fn deregister(self) -> Memory {
        self.memory.clone()
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        self.pd.device.remove_region(self.key);
    }
}

impl fmt::Debug for Mr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mr")
            .field("key", &self.key)
            .field("iova", &format_args!("{:#x}", self.iova))
            .field("len", &self.len())
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
