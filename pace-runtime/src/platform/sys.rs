//! System calls that no crate in use offers as safe functions: NUMA policy, and where pages lie.

#![allow(unsafe_code)]

use std::io;

/// Bits of a word of a node mask.
const WORD: usize = libc::c_ulong::BITS as usize;

/// How the memory that a thread touches first is spread over nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// On the nodes given, the nearest first, and nowhere else.
    Bind,
    /// Page by page over the nodes given.
    Interleave,
}

/// Sets the memory policy of the calling thread and of those that it starts from now on.
///
/// # Errors
/// The kernel lacks NUMA, or the system does not permit it, or none of `nodes` may be used.
pub(super) fn set_memory_policy(policy: Policy, nodes: &[usize]) -> io::Result<()> {
    let mode = match policy {
        Policy::Bind => libc::MPOL_BIND,
        Policy::Interleave => libc::MPOL_INTERLEAVE,
    };
    let mut mask = vec![0; nodes.iter().max().map_or(0, |max| max / WORD + 1)];
    for &node in nodes {
        mask[node / WORD] |= libc::c_ulong::from(1u8) << (node % WORD);
    }
    // The kernel takes one bit off.
    let bits = mask.len() * WORD + 1;
    // SAFETY: the kernel reads `bits - 1` bits of `mask`, which has as many.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), bits) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The NUMA node of each page of this process that holds one of `addresses`; none where no memory is yet.
///
/// # Errors
/// The kernel lacks NUMA, or the system does not permit it.
pub(super) fn nodes_of(addresses: &[usize]) -> io::Result<Vec<Option<usize>>> {
    let mut status: Vec<libc::c_int> = vec![-1; addresses.len()];
    let none = std::ptr::null::<libc::c_int>();
    // SAFETY: without nodes to move to, the kernel only looks the addresses up, which need not be mapped, and writes
    // one status for each of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            addresses.len(),
            addresses.as_ptr(),
            none,
            status.as_mut_ptr(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status.into_iter().map(|node| usize::try_from(node).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_binds_its_memory_where_the_system_lets_it() {
        std::thread::spawn(|| {
            for policy in [Policy::Bind, Policy::Interleave] {
                if let Err(error) = set_memory_policy(policy, &[0]) {
                    // No NUMA in the kernel, or a filter of system calls.
                    assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)), "{error}");
                }
            }
            assert!(set_memory_policy(Policy::Bind, &[]).is_err(), "no node at all");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn pages_that_are_there_have_a_node_and_others_have_none() {
        let page = vec![1u8; 1 << 16];
        let Ok(nodes) = nodes_of(&[page.as_ptr().addr() + 4096, 8192]) else { return };
        assert!(nodes[0].is_some(), "{nodes:?}");
        assert_eq!(nodes[1], None);
        assert_eq!(nodes_of(&[]).unwrap(), []);
    }
}
