//! Measures what a job costs: a thread samples the GPU once a second for as long as the job runs.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use animd_common::clock::now_us;
use animd_protocol::progress::Stage;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::nvml::Driver;
use crate::store::ledger::{EnergyMethod, GpuSample, Ledger, Spent};

/// The time between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// How many samples are written to the ledger in one transaction.
const BATCH: usize = 10;
/// How long the last reading may take.
const PATIENCE: Duration = Duration::from_secs(3);

fn sample(device: &Device<'_>) -> GpuSample {
    let utilization = device.utilization_rates().ok();
    GpuSample {
        at_us: now_us(),
        power_mw: device.power_usage().ok(),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
        sm_clock_mhz: device.clock_info(Clock::SM).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        gpu_percent: utilization.as_ref().map(|u| u.gpu),
        memory_percent: utilization.as_ref().map(|u| u.memory),
        memory_bytes: device.memory_info().ok().map(|m| m.used),
    }
}

/// A meter that runs while a job does.
pub struct Meter {
    orders: mpsc::Sender<Order>,
    answer: oneshot::Receiver<Option<Spent>>,
}

enum Order {
    Stage(Stage),
    End,
}

impl Meter {
    /// Starts a meter that writes samples of the card `uuid` to the ledger for this attempt at the job. `None` if no
    /// thread can be started.
    pub fn start(driver: &Driver, uuid: &str, ledger: &Ledger, job: u64, attempt: u32) -> Option<Self> {
        let (orders, ordered) = mpsc::channel();
        let (reply, answer) = oneshot::channel();
        let (driver, uuid, ledger) = (driver.clone(), uuid.to_owned(), ledger.clone());
        let run = move || _ = reply.send(watch(&driver, &uuid, &ledger, (job, attempt), &ordered));
        thread::Builder::new().name("meter".into()).spawn(run).ok()?;
        Some(Self { orders, answer })
    }

    /// Takes note that the engine has come to another stage.
    pub fn stage(&self, stage: Stage) {
        _ = self.orders.send(Order::Stage(stage));
    }

    /// Ends the metering. [`Ending::sum`] returns the sum once all samples are in the ledger.
    pub fn end(self) -> Ending {
        _ = self.orders.send(Order::End);
        Ending { answer: self.answer }
    }
}

/// A meter that has been told to end.
pub struct Ending {
    answer: oneshot::Receiver<Option<Spent>>,
}

impl Ending {
    /// Returns the energy spent; `None` if the driver did not tell, or no longer answers.
    pub async fn sum(self) -> Option<Spent> {
        timeout(PATIENCE, self.answer).await.ok()?.ok()?
    }
}

fn watch(
    driver: &Driver,
    uuid: &str,
    ledger: &Ledger,
    (job, attempt): (u64, u32),
    orders: &mpsc::Receiver<Order>,
) -> Option<Spent> {
    let nvml = driver.open().inspect_err(|e| tracing::debug!(job, "job {job} is not metered: {e}")).ok()?;
    let device = nvml
        .device_by_uuid(uuid)
        .inspect_err(|e| tracing::debug!(job, "job {job} is not metered: {e}"))
        .ok()?;
    let mut counted = Counted::default();
    let mut batch = Vec::new();
    let flush = |batch: &mut Vec<GpuSample>| {
        let samples = std::mem::take(batch);
        if samples.is_empty() {
            return;
        }
        if let Err(e) = ledger.call_blocking(move |db| db.samples(job, attempt, &samples)) {
            tracing::debug!(job, "samples of job {job} are lost: {e}");
        }
    };
    let mut next = Instant::now();
    loop {
        let order = orders.recv_timeout(next.saturating_duration_since(Instant::now()));
        let sample = sample(&device);
        counted.read(Instant::now(), sample.power_mw, device.total_energy_consumption().ok());
        match order {
            Err(RecvTimeoutError::Timeout) => {
                batch.push(sample);
                if batch.len() >= BATCH {
                    flush(&mut batch);
                }
                // The period counts from now, and not from when the sample was due, so that a slow driver is not asked
                // in a hurry.
                next = Instant::now() + PERIOD;
            }
            Ok(Order::Stage(stage)) => counted.stage(stage),
            Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => {
                // The last sample is taken as well, because a short job has few.
                batch.push(sample);
                flush(&mut batch);
                return counted.end();
            }
        }
    }
}

/// Computes energy from readings, by the counter and from sampled power at once.
#[derive(Default)]
struct Counted {
    last: Option<(Instant, Option<u32>)>,
    sampled_mj: f64,
    /// Whether any reading had a power.
    powered: bool,
    /// The counter at the first reading and at the last; `Err` once the counter has failed or fallen.
    counter: Option<Result<(u64, u64), ()>>,
    /// Both sums at the beginning of each stage.
    marks: Vec<(Stage, Sums)>,
}

#[derive(Clone, Copy)]
struct Sums {
    sampled_mj: f64,
    counter_mj: u64,
}

impl Counted {
    fn read(&mut self, now: Instant, power_mw: Option<u32>, counter_mj: Option<u64>) {
        if let Some((before, power_before)) = self.last {
            let ends: Vec<f64> = power_before.into_iter().chain(power_mw).map(f64::from).collect();
            if !ends.is_empty() {
                let mean = ends.iter().sum::<f64>() / ends.len() as f64;
                self.sampled_mj += mean * now.saturating_duration_since(before).as_secs_f64();
            }
        }
        self.powered |= power_mw.is_some();
        self.last = Some((now, power_mw));
        self.counter = Some(match (self.counter, counter_mj) {
            (None, Some(now)) => Ok((now, now)),
            (Some(Ok((first, last))), Some(now)) if now >= last => Ok((first, now)),
            _ => Err(()),
        });
    }

    fn sums(&self) -> Sums {
        let counter_mj = self.counter.and_then(Result::ok).map_or(0, |(first, last)| last - first);
        Sums { sampled_mj: self.sampled_mj, counter_mj }
    }

    fn stage(&mut self, stage: Stage) {
        self.marks.push((stage, self.sums()));
    }

    fn end(self) -> Option<Spent> {
        let last = self.sums();
        let method = match self.counter {
            Some(Ok(_)) => EnergyMethod::Counter,
            _ if self.powered => EnergyMethod::Sampled,
            _ => return None,
        };
        let of = |from: Sums, to: Sums| match method {
            EnergyMethod::Counter => to.counter_mj - from.counter_mj,
            EnergyMethod::Sampled => (to.sampled_mj - from.sampled_mj).round() as u64,
        };
        let mut stages: Vec<(Stage, u64)> = Vec::new();
        for (i, (stage, from)) in self.marks.iter().enumerate() {
            let to = self.marks.get(i + 1).map_or(last, |(_, sums)| *sums);
            // What comes before the first word of the engine belongs to the first stage.
            let from = if i == 0 { Sums { sampled_mj: 0.0, counter_mj: 0 } } else { *from };
            match stages.iter_mut().find(|(known, _)| known == stage) {
                Some((_, sum)) => *sum += of(from, to),
                None => stages.push((*stage, of(from, to))),
            }
        }
        let zero = Sums { sampled_mj: 0.0, counter_mj: 0 };
        Some(Spent { energy_mj: of(zero, last), method, stages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is spent, of one reading a second: power in milliwatts, the counter in millijoules, and the stage
    /// that begins then.
    fn spent(readings: &[(Option<u32>, Option<u64>, Option<Stage>)]) -> Option<Spent> {
        let (mut counted, start) = (Counted::default(), Instant::now());
        for (n, (power, counter, stage)) in readings.iter().enumerate() {
            counted.read(start + Duration::from_secs(n as u64), *power, *counter);
            if let Some(stage) = stage {
                counted.stage(*stage);
            }
        }
        counted.end()
    }

    #[test]
    fn the_counter_is_believed_before_the_samples() {
        let got = spent(&[
            (Some(100_000), Some(5_000_000), Some(Stage::Text)),
            (Some(300_000), Some(5_190_000), Some(Stage::Denoise)),
            (Some(300_000), Some(5_500_000), None),
        ]);
        let stages = vec![(Stage::Text, 190_000), (Stage::Denoise, 310_000)];
        assert_eq!(got, Some(Spent { energy_mj: 500_000, method: EnergyMethod::Counter, stages }));
    }

    #[test]
    fn without_a_sound_counter_power_is_integrated() {
        let text = Some(Stage::Text);
        let rising = [(Some(100_000), None, text), (Some(300_000), None, None), (Some(300_000), None, None)];
        let got = spent(&rising).expect("powered");
        assert_eq!((got.energy_mj, got.method), (500_000, EnergyMethod::Sampled));
        assert_eq!(got.stages, [(Stage::Text, 500_000)]);
        // A counter that falls is one that somebody reset; one that fails once is not read across the gap.
        for (first, second) in [(Some(9), Some(3)), (Some(9), None), (None, Some(9))] {
            let got = spent(&[(Some(100_000), first, None), (Some(100_000), second, None)]).expect("powered");
            assert_eq!((got.energy_mj, got.method), (100_000, EnergyMethod::Sampled));
        }
        // One missed reading of the power is bridged by its neighbours.
        let got = spent(&[(Some(100_000), None, None), (None, None, None), (Some(100_000), None, None)]);
        assert_eq!(got.map(|s| s.energy_mj), Some(200_000));
        assert_eq!(spent(&[(None, None, None), (None, None, None)]), None);
        assert_eq!(spent(&[]), None);
    }

    #[test]
    fn what_comes_before_the_first_stage_is_part_of_it() {
        let got = spent(&[
            (Some(1000), Some(10), None),
            (Some(1000), Some(20), Some(Stage::Load)),
            (Some(1000), Some(50), None),
        ]);
        assert_eq!(got.map(|s| s.stages), Some(vec![(Stage::Load, 40)]));
    }
}
