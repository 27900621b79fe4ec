//! The floating-point control register of a thread, which another library may have set to flush subnormals or to
//! round otherwise. Kernels run under the default and put back what they found.

/// Runs `work` with rounding to nearest, subnormals kept and all exceptions masked, then restores the thread's state.
#[cfg(target_arch = "x86_64")]
pub(crate) fn with_default_control<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(u32);
    impl Drop for Restore {
        fn drop(&mut self) {
            write_control(self.0);
        }
    }
    const DEFAULT: u32 = 0x1f80;
    let _restore = Restore(read_control());
    write_control(DEFAULT);
    work()
}

/// Elsewhere the default is taken as given.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn with_default_control<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Whether the calling thread rounds to nearest.
#[cfg(feature = "python")]
pub(crate) fn rounds_to_nearest() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        const ROUNDING: u32 = 0x6000;
        read_control() & ROUNDING == 0
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

#[cfg(target_arch = "x86_64")]
fn read_control() -> u32 {
    let mut value = 0u32;
    // SAFETY: STMXCSR stores four bytes to the variable's address; every x86-64 CPU has it.
    unsafe { core::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

#[cfg(target_arch = "x86_64")]
fn write_control(value: u32) {
    // SAFETY: LDMXCSR reads four bytes; the value is the default or one that the CPU itself gave.
    unsafe { core::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}
