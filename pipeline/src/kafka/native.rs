//! The one call of librdkafka that its Rust wrapper lacks: IncrementalAlterConfigs.
//!
//! This is the one module with `unsafe`. Every pointer it makes is owned by a guard that destroys it, every pointer it borrows
//! lives inside an event that outlives the borrow, and nothing leaves but owned Rust values. `alter_configs` of the wrapper must
//! not be used: it resets every other override, `cleanup.policy` included (kafka-confirmed section 6).
#![expect(unsafe_code, reason = "IncrementalAlterConfigs exists only in librdkafka's C interface")]

use std::ffi::CString;
use std::time::Duration;

use rdkafka::client::Client;
use rdkafka::{ClientContext, bindings as sys};

use crate::kafka::error::{KafkaError, raw_code_name};

/// Destroys what it holds when it goes; never null.
struct Owned<T> {
    ptr: *mut T,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    fn new(ptr: *mut T, destroy: unsafe extern "C" fn(*mut T), action: &str) -> Result<Self, KafkaError> {
        if ptr.is_null() { Err(KafkaError::own(action, "OutOfMemory")) } else { Ok(Self { ptr, destroy }) }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from the constructor that belongs to `destroy`, is not null and is destroyed here alone.
        unsafe { (self.destroy)(self.ptr) }
    }
}

fn c_string(text: &str, action: &str) -> Result<CString, KafkaError> {
    CString::new(text).map_err(|_| KafkaError::own(action, "NulByte"))
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

/// Waits for the one result of an admin call.
fn result_of(queue: &Owned<sys::rd_kafka_queue_t>, timeout: Duration, action: &str) -> Result<Owned<sys::rd_kafka_event_t>, KafkaError> {
    // SAFETY: the queue is alive; the event, when there is one, becomes ours.
    let event = unsafe { sys::rd_kafka_queue_poll(queue.ptr, millis(timeout)) };
    if event.is_null() {
        return Err(KafkaError::own(action, "OperationTimedOut"));
    }
    let event = Owned::new(event, sys::rd_kafka_event_destroy, action)?;
    // SAFETY: the event is alive.
    let code = unsafe { sys::rd_kafka_event_error(event.ptr) };
    if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        Ok(event)
    } else {
        Err(KafkaError::own(action, &raw_code_name(code)))
    }
}

/// Sets `settings` of one topic and leaves every other override as it is. Blocks up to `timeout`.
///
/// # Errors
/// [`KafkaError::Call`] with the broker's code, e.g. `InvalidConfig`.
pub(crate) fn set_topic_settings<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    settings: &[(&str, &str)],
    timeout: Duration,
) -> Result<(), KafkaError> {
    let action = format!("set settings of {topic}");
    let name = c_string(topic, &action)?;
    let rk = client.native_ptr();
    // SAFETY: `name` outlives the call, which copies it.
    let resource = unsafe { sys::rd_kafka_ConfigResource_new(sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr()) };
    let resource = Owned::new(resource, sys::rd_kafka_ConfigResource_destroy, &action)?;
    for (key, value) in settings {
        let (key, value) = (c_string(key, &action)?, c_string(value, &action)?);
        // SAFETY: the resource is alive, the call copies both strings; a returned error is ours to destroy.
        let error = unsafe {
            sys::rd_kafka_ConfigResource_add_incremental_config(
                resource.ptr,
                key.as_ptr(),
                sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET,
                value.as_ptr(),
            )
        };
        if !error.is_null() {
            let error = Owned::new(error, sys::rd_kafka_error_destroy, &action)?;
            // SAFETY: the error is alive.
            let code = unsafe { sys::rd_kafka_error_code(error.ptr) };
            return Err(KafkaError::own(action, &raw_code_name(code)));
        }
    }
    // SAFETY: `client` keeps `rk` alive for the whole function; queue and options are destroyed by their guards before it returns.
    let queue = Owned::new(unsafe { sys::rd_kafka_queue_new(rk) }, sys::rd_kafka_queue_destroy, &action)?;
    // SAFETY: as above.
    let options = unsafe { sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS) };
    let options = Owned::new(options, sys::rd_kafka_AdminOptions_destroy, &action)?;
    let mut resources = [resource.ptr];
    // SAFETY: one live resource, and the count says so; the call copies what it needs.
    unsafe { sys::rd_kafka_IncrementalAlterConfigs(rk, resources.as_mut_ptr(), 1, options.ptr, queue.ptr) };
    let event = result_of(&queue, timeout, &action)?;
    let mut count = 0usize;
    // SAFETY: the event is alive and of this call; the array and its members live as long as it does.
    let codes: Vec<_> = unsafe {
        let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(event.ptr);
        if result.is_null() {
            return Err(KafkaError::own(action, "WrongEvent"));
        }
        let resources = sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, &raw mut count);
        (0..count).map(|index| sys::rd_kafka_ConfigResource_error(*resources.add(index))).collect()
    };
    match codes.into_iter().find(|code| *code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR) {
        None => Ok(()),
        Some(code) => Err(KafkaError::own(action, &raw_code_name(code))),
    }
}
