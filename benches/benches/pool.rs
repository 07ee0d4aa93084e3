//! What it costs to run something in parallel: regions without work, and the ways to hand out work.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pace_benches::Bench;
use pace_kernels::{MatMut, Par, Pool, PoolOptions};

/// Two threads on their CPUs, spinning (the default) or asleep between regions.
fn fork_join(c: &mut Criterion, bench: &Bench) {
    let mut group = c.benchmark_group("pool");
    let sleepy = PoolOptions { spin: Duration::ZERO };
    let pools = [
        ("spin", Pool::new(&[0, 1]).expect("two threads")),
        ("park", Pool::with_options(&[0, 1], sleepy).expect("two threads")),
    ];
    for (name, pool) in &pools {
        let members = AtomicUsize::new(0);
        pool.par().run(|member| _ = members.fetch_add(member + 1, Ordering::Relaxed));
        assert_eq!(members.into_inner(), 3, "both members take part once");
        group.bench_function(format!("empty region/2 threads/{name}"), |b| b.iter(|| pool.par().run(|_| {})));
    }
    group.bench_function("empty region/all threads", |b| b.iter(|| bench.cx().par.run(|_| {})));
    group.bench_function("empty region/no threads", |b| b.iter(|| Par::seq().run(|_| {})));
    group.finish();
}

fn handing_out(c: &mut Criterion, bench: &Bench) {
    let par = bench.cx().par;
    let mut group = c.benchmark_group("pool");
    let count = AtomicUsize::new(0);
    par.tasks(1000, &mut [], |_, _| _ = count.fetch_add(1, Ordering::Relaxed));
    assert_eq!(count.into_inner(), 1000, "every task runs once");
    group.bench_function("1000 empty tasks", |b| b.iter(|| par.tasks(1000, &mut [], |_, _| {})));

    let mut data = vec![0.0f32; 64 * 1024];
    let mut fill = || {
        let out = MatMut::new(&mut data, 64, 1024);
        par.grid(out, &[0, 32, 64], 64, &mut [], |_, _, _, mut tile| {
            (0..tile.rows()).for_each(|i| tile.row_mut(i).fill(1.0));
        });
    };
    fill();
    group.bench_function("grid of 32 tiles of 8 KiB", |b| b.iter(&mut fill));
    assert!(data.iter().all(|&x| x == 1.0), "the grid covers the matrix");
    group.finish();
}

/// One set of threads for all: a second one would find the caller pinned to a single CPU.
fn all(c: &mut Criterion) {
    let bench = Bench::new();
    fork_join(c, &bench);
    handing_out(c, &bench);
}

criterion_group!(benches, all);
criterion_main!(benches);
