use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use half::bf16;

use crate::{ActBuf, ActMut, ActRef, DType, MatMut, Par, Pool, PoolError, PoolOptions};

/// Pools of all kinds: alone, hot, with more threads than cores, pinned to one CPU, always asleep.
fn pools() -> Vec<Pool> {
    let sleepy = PoolOptions { spin: Duration::ZERO };
    let mut pools: Vec<_> = [1, 2, 3, 17].map(|threads| Pool::unpinned(threads).unwrap()).into();
    pools.push(Pool::new(&[0, 0, 0]).unwrap());
    pools.push(Pool::with_options(&[0, 1], sleepy).unwrap());
    pools
}

fn counters(n: usize) -> Vec<AtomicUsize> {
    (0..n).map(|_| AtomicUsize::new(0)).collect()
}

fn all_once(counters: &[AtomicUsize]) -> bool {
    counters.iter().all(|count| count.load(Ordering::Relaxed) == 1)
}

#[test]
fn every_member_runs_once() {
    for pool in pools() {
        for _ in 0..50 {
            let counts = counters(pool.threads());
            pool.par().run(|member| _ = counts[member].fetch_add(1, Ordering::Relaxed));
            assert!(all_once(&counts), "{pool:?}");
        }
    }
    let counts = counters(1);
    Par::seq().run(|member| _ = counts[member].fetch_add(1, Ordering::Relaxed));
    assert!(all_once(&counts) && Par::seq().threads() == 1);
}

#[test]
fn every_task_runs_once_with_its_own_slot() {
    for pool in pools() {
        for n in [0, 1, 2, 7, 200] {
            let counts = counters(n);
            let mut scratch = vec![0.0; 10 * pool.threads() + 3];
            pool.par().tasks(n, &mut scratch, |slot, task| {
                assert!(slot.len() >= 10);
                slot.fill(task as f32);
                std::hint::spin_loop();
                assert!(slot.iter().all(|&x| x == task as f32), "the slot is shared");
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(all_once(&counts), "{pool:?} {n}");
        }
    }
}

#[test]
fn tasks_stop_at_the_first_error() {
    for pool in pools() {
        assert_eq!(pool.par().try_tasks(100, &mut [], |_, _| Ok::<(), usize>(())), Ok(()));
        let started = AtomicUsize::new(0);
        let result = pool.par().try_tasks(100_000, &mut [], |_, task| {
            started.fetch_add(1, Ordering::Relaxed);
            if task == 3 { Err(task) } else { Ok(()) }
        });
        assert_eq!(result, Err(3));
        if pool.threads() == 1 {
            assert_eq!(started.into_inner(), 4);
        }
    }
}

#[test]
fn a_grid_covers_the_matrix_once() {
    let seq_and_pools: Vec<_> = pools().into_iter().map(Some).chain([None]).collect();
    for pool in &seq_and_pools {
        let par = pool.as_ref().map_or(Par::seq(), Pool::par);
        for (rows, cols, cuts, width) in [
            (5, 23, vec![0, 2, 5], 4),
            (1, 100, vec![0, 1], 7),
            (4, 3, vec![0, 1, 2, 3, 4], 8),
            (3, 0, vec![0, 3], 1),
        ] {
            let mut data = vec![0.0f32; rows * (cols + 2)];
            let out = MatMut::with_stride(&mut data, rows, cols, cols + 2);
            let mut scratch = vec![0.0; par.threads()];
            par.grid(out, &cuts, width, &mut scratch, |slot, r, c, mut tile| {
                assert_eq!(slot.len(), 1);
                assert_eq!(tile.rows(), cuts[r + 1] - cuts[r]);
                assert_eq!(tile.cols(), width.min(cols - c * width));
                for i in 0..tile.rows() {
                    for (j, x) in tile.row_mut(i).iter_mut().enumerate() {
                        *x += ((cuts[r] + i) * 1000 + c * width + j + 1) as f32;
                    }
                }
            });
            for (at, &x) in data.iter().enumerate() {
                let (i, j) = (at / (cols + 2), at % (cols + 2));
                assert_eq!(x, if j < cols { (i * 1000 + j + 1) as f32 } else { 0.0 });
            }
        }
    }
}

#[test]
fn a_grid_of_activations() {
    let pool = Pool::unpinned(2).unwrap();
    let mut buf = ActBuf::new(DType::Bf16, 20);
    pool.par().grid_act(buf.rows_mut(6), &[0, 6], 8, &mut [], |_, _, col, tile| {
        let ActMut::Bf16(mut tile) = tile else { unreachable!() };
        (0..6).for_each(|i| tile.row_mut(i).fill(bf16::from_f32(col as f32)));
    });
    let ActRef::Bf16(act) = buf.rows(6) else { unreachable!() };
    assert!((0..6).all(|i| (0..20).all(|j| act.row(i)[j].to_f32() == (j / 8) as f32)));
}

#[test]
#[should_panic(expected = "row cuts must ascend from 0 to 4")]
fn cuts_that_miss_rows_are_refused() {
    Par::seq().grid(MatMut::new(&mut [0.0f32; 8], 4, 2), &[0, 3], 1, &mut [], |_, _, _, _| {});
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for pool in pools() {
        for culprit in 0..pool.threads() {
            let others = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.par().run(|member| {
                    assert!(member != culprit, "member {member} failed");
                    others.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let message = result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("member {culprit} failed"));
            if pool.threads() > 1 {
                assert_eq!(others.into_inner(), pool.threads() - 1);
            }
        }
        let counts = counters(pool.threads());
        pool.par().run(|member| _ = counts[member].fetch_add(1, Ordering::Relaxed));
        assert!(all_once(&counts));
    }
}

#[test]
fn a_nested_region_runs_on_the_member() {
    let (outer, inner) = (Pool::unpinned(3).unwrap(), Pool::unpinned(2).unwrap());
    for nested in [&outer, &inner] {
        let counts = counters(3 * 40);
        outer.par().run(|member| {
            let members = Mutex::new(Vec::new());
            nested.par().run(|member| members.lock().unwrap().push(member));
            assert_eq!(members.into_inner().unwrap(), (0..nested.threads()).collect::<Vec<_>>());
            let mut out = vec![0.0f32; 20];
            nested
                .par()
                .tasks(20, &mut [], |_, i| _ = counts[member * 40 + i].fetch_add(1, Ordering::Relaxed));
            nested.par().grid(MatMut::new(&mut out, 1, 20), &[0, 1], 1, &mut [], |_, _, i, _| {
                counts[member * 40 + 20 + i].fetch_add(1, Ordering::Relaxed);
            });
        });
        assert!(all_once(&counts));
    }
}

#[test]
fn callers_from_several_threads_take_turns() {
    let pool = Pool::unpinned(2).unwrap();
    let inside = AtomicUsize::new(0);
    let regions = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.par().run(|_| {
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "two regions at once");
                        inside.fetch_sub(1, Ordering::SeqCst);
                        regions.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(regions.into_inner(), 2 * 3 * 500);
}

#[test]
fn a_hundred_thousand_regions() {
    let pool = Pool::unpinned(2).unwrap();
    let total = AtomicUsize::new(0);
    for i in 0..100_000 {
        pool.par().run(|member| _ = total.fetch_add(member + 1, Ordering::Relaxed));
        if i % 10_000 == 0 {
            // Long enough for the worker to fall asleep.
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    assert_eq!(total.into_inner(), 300_000);
}

#[test]
fn sleepers_are_always_woken() {
    // Without spinning, every region races a worker that falls asleep and a caller that does.
    let pool = Pool::with_options(&[0, 1, 0, 1], PoolOptions { spin: Duration::ZERO }).unwrap();
    let total = AtomicUsize::new(0);
    for _ in 0..5_000 {
        pool.par().run(|_| _ = total.fetch_add(1, Ordering::Relaxed));
    }
    assert_eq!(total.into_inner(), 20_000);
}

#[test]
fn a_core_that_another_thread_takes_delays_regions_but_never_stops_them() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A pool of its own pins this thread to the CPU that the worker below wants.
            Pool::new(&[1]).unwrap().pin_caller();
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        for spin in [Duration::ZERO, PoolOptions::default().spin] {
            let pool = Pool::with_options(&[0, 1], PoolOptions { spin }).unwrap();
            let total = AtomicUsize::new(0);
            for _ in 0..50 {
                pool.par().run(|_| _ = total.fetch_add(1, Ordering::Relaxed));
            }
            assert_eq!(total.into_inner(), 100);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn pinning_is_reported_and_never_fatal() {
    assert!(matches!(Pool::new(&[]), Err(PoolError::NoThreads)));
    assert!(matches!(Pool::unpinned(0), Err(PoolError::NoThreads)));
    let nowhere = Pool::new(&[usize::MAX, usize::MAX]).unwrap();
    assert_eq!((nowhere.pinned(), nowhere.pin_caller(), nowhere.threads()), (0, false, 2));
    assert_eq!(Pool::unpinned(2).unwrap().pinned(), 0);
    if cfg!(target_os = "linux") {
        // In a thread of its own, because the affinity stays.
        let pinned = std::thread::spawn(|| {
            let pool = Pool::new(&[0, 0]).unwrap();
            (pool.pinned(), pool.pin_caller(), pool.pinned())
        });
        assert_eq!(pinned.join().unwrap(), (1, true, 2));
    }
}
