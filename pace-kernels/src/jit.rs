//! Run-time code generation: kernels for the exact shape, blocking and epilogue that a layer has.
//!
//! Speed is that of the hand-written tiles, bit for bit with their results. What generation adds is
//! the exact trip count along K, odd tails without branches, and any combination of fused epilogues
//! applied to sums that are still in registers.

mod assembler;
mod brgemm;
mod cache;
mod epilogue;
mod key;
mod math;
mod memory;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::assembler::{Code, Emit};
use self::cache::Cache;
pub(crate) use self::epilogue::EpilogueArgs;
pub use self::key::UnknownKey;
pub(crate) use self::key::{Operands, TileEpilogue, TileKey};
use self::memory::Executable;
use crate::gemm::tile::TileArgs;
use crate::{Isa, Kernels};

/// Generated kernels, made at first use and kept for the next.
///
/// Shared by all threads of an engine; two engines have one each. A kernel stays alive while somebody
/// holds it, even if its place was given to another.
///
/// ```
/// use pace_kernels::{Jit, JitCapacity, Kernels};
///
/// match Jit::new(Kernels::detect(), JitCapacity::default()) {
///     Ok(jit) => assert!(jit.list().is_empty()),
///     Err(unavailable) => println!("{unavailable}"),
/// }
/// ```
pub struct Jit {
    isa: Isa,
    cache: Mutex<Cache>,
}

/// How much a [`Jit`] may keep. The kernel used longest ago makes room for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitCapacity {
    /// Kernels.
    pub kernels: usize,
    /// Bytes of their memory, in whole pages.
    pub bytes: usize,
}

/// A generated kernel in the list of a [`Jit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitEntry {
    /// The name, which [`Jit::dump`] takes.
    pub name: String,
    /// Bytes of code and constants.
    pub bytes: usize,
}

/// Why there is no generated code.
#[derive(Debug, thiserror::Error)]
pub enum JitError {
    /// The tier lacks the instructions.
    #[error("generated kernels need {needed}; this engine runs on {actual}")]
    Isa {
        /// The least tier that has them.
        needed: Isa,
        /// The tier of the engine.
        actual: Isa,
    },
    /// The system gives no memory that can be executed.
    #[error("no executable memory for generated kernels")]
    Memory(#[source] std::io::Error),
    /// The generator asked for an instruction that does not exist.
    #[error("code generation failed for `{kernel}`: {reason}")]
    Encode {
        /// Name of the kernel.
        kernel: String,
        /// What the encoder says.
        reason: String,
    },
    /// No kernel has this name.
    #[error(transparent)]
    Unknown(#[from] UnknownKey),
}

impl Jit {
    /// A generator of kernels for the tier of `kernels`.
    ///
    /// # Errors
    /// The tier is below AVX-512 with VNNI, or the system refuses executable memory.
    pub fn new(kernels: Kernels, capacity: JitCapacity) -> Result<Self, JitError> {
        let (needed, actual) = (Isa::Avx512Vnni, kernels.isa());
        if actual < needed {
            return Err(JitError::Isa { needed, actual });
        }
        // A refusal is better known now than in the middle of a request.
        const RETURN: u8 = 0xc3;
        Executable::new(&[RETURN]).map_err(JitError::Memory)?;
        Ok(Self { isa: actual, cache: Mutex::new(Cache::new(capacity)) })
    }

    /// What is kept at the moment, by name.
    pub fn list(&self) -> Vec<JitEntry> {
        self.cache().list()
    }

    /// The instructions of a kernel in Intel's notation, one a line, each after its offset in bytes.
    /// A kernel that is not kept is generated for this.
    ///
    /// # Errors
    /// The name is none of a kernel; see also [`Jit::new`].
    pub fn dump(&self, name: &str) -> Result<String, JitError> {
        let key = name.parse()?;
        Ok(self.kernel(&key)?.disassemble())
    }

    /// The tile for a key.
    ///
    /// # Panics
    /// The key's parts do not fit together.
    pub(crate) fn tile(&self, key: &TileKey) -> Result<Tile, JitError> {
        Ok(Tile { kernel: self.kernel(key)? })
    }

    fn kernel(&self, key: &TileKey) -> Result<Arc<Kernel>, JitError> {
        assert!(key.is_valid(), "no tile: {key:?}");
        if self.isa < key.isa() {
            return Err(JitError::Isa { needed: key.isa(), actual: self.isa });
        }
        self.cache().get_or_insert(key, || Kernel::new(key.to_string(), brgemm::generate(key)))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic leaves the cache whole: it is changed only after a kernel is complete.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jit({}, {} kernels)", self.isa, self.list().len())
    }
}

impl Default for JitCapacity {
    /// 1024 kernels, 32 MiB.
    fn default() -> Self {
        Self { kernels: 1024, bytes: 32 << 20 }
    }
}

/// A generated tile.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    kernel: Arc<Kernel>,
}

impl Tile {
    /// Whether both are the same code in the same place.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }

    /// Runs the tile.
    ///
    /// # Safety
    /// - The operands in `args` are accessible over the shape that the tile was generated for, as are
    ///   those in `epilogue` that it was generated with. `rows`, `width`, `steps` and `group_steps` are
    ///   not read: they are in the code.
    /// - `sums` is written by int8 tiles and by tiles without an epilogue; a bf16 tile with one only
    ///   reads it, if `resume` is set.
    /// - What is written overlaps no other operand.
    pub(crate) unsafe fn run(&self, args: &TileArgs, epilogue: Option<&EpilogueArgs>) {
        #[cfg(target_arch = "x86_64")]
        type Entry = unsafe extern "sysv64" fn(*const TileArgs, *const EpilogueArgs);
        // No value of this type exists on other processors.
        #[cfg(not(target_arch = "x86_64"))]
        type Entry = unsafe extern "C" fn(*const TileArgs, *const EpilogueArgs);
        // SAFETY: the pages hold a whole function of this signature, made by `brgemm::generate`; it
        // keeps the registers that its ABI wants kept, and the tier that it needs was checked before
        // it was handed out. The operands are the caller's promise.
        unsafe {
            let entry = std::mem::transmute::<*const u8, Entry>(self.kernel.code.entry().as_ptr());
            entry(args, epilogue.map_or(std::ptr::null(), std::ptr::from_ref));
        }
    }
}

/// A finished kernel of any kind.
#[derive(Debug)]
struct Kernel {
    name: String,
    code: Executable,
    /// Bytes of instructions; constants follow.
    instructions: usize,
}

impl Kernel {
    fn new(name: String, code: Emit<Code>) -> Result<Self, JitError> {
        match code {
            Ok(code) => {
                let pages = Executable::new(&code.bytes).map_err(JitError::Memory)?;
                Ok(Self { name, code: pages, instructions: code.instructions })
            }
            Err(error) => Err(JitError::Encode { kernel: name, reason: error.to_string() }),
        }
    }

    fn disassemble(&self) -> String {
        use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

        let mut formatter = IntelFormatter::new();
        let mut text = String::new();
        for instruction in
            &mut Decoder::new(64, &self.code.bytes()[..self.instructions], DecoderOptions::NONE)
        {
            text.push_str(&format!("{:6x}  ", instruction.ip()));
            formatter.format(&instruction, &mut text);
            text.push('\n');
        }
        text
    }
}
