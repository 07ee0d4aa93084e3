//! Run-time code generation: kernels for the exact shape, blocking and epilogue that a layer has.
//!
//! Speed is that of the hand-written tiles, bit for bit with their results. What generation adds is
//! the exact trip count along K, odd tails without branches, and any combination of fused epilogues
//! applied to sums that are still in registers.

mod assembler;
mod attention;
mod brgemm;
mod cache;
mod epilogue;
mod key;
mod math;
mod memory;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use self::attention::{AttentionKey, AttentionStep, Scores};
use self::cache::Cache;
pub(crate) use self::epilogue::EpilogueArgs;
pub use self::key::UnknownKey;
pub(crate) use self::key::{KernelKey, Operands, TileEpilogue, TileKey};
use self::memory::Executable;
use crate::gemm::tile::TileArgs;
use crate::{Isa, Kernels, KvDType, WeightFormat};

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
    kernels: Kernels,
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
    /// The tier multiplies by instructions that are not generated, and other ones give other bits.
    #[error("no kernels are generated for {0}; PACE_ISA=avx512-bf16 does without it")]
    Tiles(Isa),
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
    /// Nothing is generated for weights of this format.
    #[error("generated kernels multiply bf16 and int8 weights, not {0}")]
    Format(WeightFormat),
    /// No attention step is generated for keys and values of this type.
    #[error("generated attention reads bf16 and int8 keys and values, not {0}")]
    Kv(KvDType),
    /// No kernel has this name.
    #[error(transparent)]
    Unknown(#[from] UnknownKey),
}

impl Jit {
    /// A generator of kernels for the tier of `kernels`.
    ///
    /// # Errors
    /// The tier is below AVX-512 with VNNI or has AMX, or the system refuses executable memory.
    pub fn new(kernels: Kernels, capacity: JitCapacity) -> Result<Self, JitError> {
        let (needed, actual) = (Isa::Avx512Vnni, kernels.isa());
        if actual < needed {
            return Err(JitError::Isa { needed, actual });
        }
        if actual == Isa::Amx {
            return Err(JitError::Tiles(actual));
        }
        // A refusal is better known now than in the middle of a request.
        const RETURN: u8 = 0xc3;
        Executable::new(&[RETURN]).map_err(JitError::Memory)?;
        Ok(Self { kernels, cache: Mutex::new(Cache::new(capacity)) })
    }

    /// The kernels that serve what is not generated.
    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// What is kept at the moment, by name.
    pub fn list(&self) -> Vec<JitEntry> {
        self.cache().list()
    }

    /// The instructions of a kernel in Intel's notation, one a line, each after its offset in bytes.
    /// A kernel that is not kept is generated for this, and takes nobody's place.
    ///
    /// # Errors
    /// The name is none of a kernel; see also [`Jit::new`].
    pub fn dump(&self, name: &str) -> Result<String, JitError> {
        let key = name.parse()?;
        self.check(&key)?;
        let kept = self.cache().find(&key);
        match kept {
            Some(kernel) => Ok(kernel.disassemble()),
            None => Ok(Kernel::generate(&key)?.disassemble()),
        }
    }

    /// The least tier that has the instructions of the kernel of this name.
    ///
    /// # Errors
    /// No kernel has this name.
    pub fn requires(name: &str) -> Result<Isa, UnknownKey> {
        Ok(name.parse::<KernelKey>()?.isa())
    }

    /// The tile for a key.
    ///
    /// # Panics
    /// The key's parts do not fit together.
    pub(crate) fn tile(&self, key: &TileKey) -> Result<Tile, JitError> {
        Ok(Tile { kernel: self.kernel(KernelKey::Tile(*key))? })
    }

    /// The attention step for a key.
    ///
    /// # Panics
    /// As `tile`.
    pub(crate) fn attention_step(&self, key: &AttentionKey) -> Result<AttentionStep, JitError> {
        Ok(AttentionStep::new(*key, self.kernel(KernelKey::Attention(*key))?))
    }

    fn kernel(&self, key: KernelKey) -> Result<Arc<Kernel>, JitError> {
        assert!(key.is_valid(), "no kernel: {key:?}");
        self.check(&key)?;
        self.cache().get_or_insert(&key, || Kernel::generate(&key))
    }

    /// Whether the tier has the instructions that a kernel needs.
    fn check(&self, key: &KernelKey) -> Result<(), JitError> {
        let (needed, actual) = (key.isa(), self.kernels.isa());
        if actual < needed { Err(JitError::Isa { needed, actual }) } else { Ok(()) }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic leaves the cache whole: it is changed only after a kernel is complete.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jit({}, {} kernels)", self.kernels.isa(), self.list().len())
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
        let epilogue = epilogue.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the kernel is one of `brgemm::generate`, which takes both addresses; the operands are
        // the caller's promise.
        unsafe { self.kernel.call(args, epilogue) }
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
    fn generate(key: &KernelKey) -> Result<Self, JitError> {
        let name = key.to_string();
        match key.generate() {
            Ok(code) => {
                let pages = Executable::new(&code.bytes).map_err(JitError::Memory)?;
                Ok(Self { name, code: pages, instructions: code.instructions })
            }
            Err(error) => Err(JitError::Encode { kernel: name, reason: error.to_string() }),
        }
    }

    /// Calls the code with the addresses of its arguments.
    ///
    /// # Safety
    /// The code was generated for arguments of these types, and what they describe is accessible.
    unsafe fn call<A, B>(&self, first: *const A, second: *const B) {
        #[cfg(target_arch = "x86_64")]
        type Entry<A, B> = unsafe extern "sysv64" fn(*const A, *const B);
        // No kernel exists on other processors.
        #[cfg(not(target_arch = "x86_64"))]
        type Entry<A, B> = unsafe extern "C" fn(*const A, *const B);
        // SAFETY: the pages hold a whole function, which keeps the registers that its ABI wants kept; the
        // tier that it needs was checked before it was generated. The rest is the caller's promise.
        unsafe {
            let entry = std::mem::transmute::<*const u8, Entry<A, B>>(self.code.entry().as_ptr());
            entry(first, second);
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
