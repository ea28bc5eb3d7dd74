/* uniflight_mp._shm: the core as Python objects.  The only file that knows Python, and
 * therefore one file, long as it is.
 *
 * The interpreter lock is held through a section of the core when the group's lock is
 * free (0.1 us); when it is not, the interpreter lock is released first and taken back
 * after the group's lock was released.  Nobody waits for the one holding the other.
 *
 * Handles (Lead, Follow) give their part of a flight back when they are deallocated, so an
 * exception between the call that made one and the `try` behind it loses nothing. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bell.h"
#include "check.h"
#include "crash.h"
#include "digest.h"
#include "extra.h"
#include "futex.h"
#include "process.h"
#include "repair.h"
#include "wait.h"
#include "watcher.h"

#define SIGNAL_CHECK_NS UINT64_C(50000000)
#define UF_MAX_NODES 1024 /* what the kernel can be built for */
#define UF_BITS_OF_LONG (8 * (int)sizeof(long))

typedef struct {
    PyObject_HEAD
    struct uf_mapping *mapping;
    PyObject *path;       /* str: where the segment's name should lead here; None = nowhere */
    PyObject *encode_key; /* callable: any key -> bytes */
    PyTypeObject *lead_type, *follow_type;
    bool read_only;
} Table;

typedef struct {
    PyObject_HEAD
    Table *table;
    struct uf_flight flight;
    uint64_t owner;
    uint32_t fork_count;
    uint32_t followers; /* Lead: after finish */
    bool fenced;        /* Lead: finish found that somebody else leads */
    bool active;        /* the flight (Lead) or the cell (Follow) is still ours to give back */
} Handle;

typedef struct {
    PyObject_HEAD
    void *data; /* mapped; NULL if it could not be */
    Py_ssize_t bytes;
} Extra;

typedef struct {
    PyTypeObject *table_type, *lead_type, *follow_type, *extra_type;
} ModuleState;

/* ---- keys ------------------------------------------------------------------------- */

struct key_buffer {
    unsigned char bytes[UF_KEY_BYTES];
    struct uf_key key;
};

/* A plain str is most of all keys: its msgpack encoding is a header and its UTF-8, which
 * the str caches. keys.py writes the same; a test compares the two. */
static bool encode_short_str(PyObject *key, struct key_buffer *buffer)
{
    Py_ssize_t length;
    const char *utf8 = PyUnicode_AsUTF8AndSize(key, &length);
    if (!utf8) {
        PyErr_Clear(); /* lone surrogates: keys.py knows what to do */
        return false;
    }
    if (length > (Py_ssize_t)UF_KEY_BYTES - 2)
        return false;
    unsigned char *end = buffer->bytes;
    if (length < 32) {
        *end++ = (unsigned char)(0xa0 | length);
    } else {
        *end++ = 0xd9;
        *end++ = (unsigned char)length;
    }
    memcpy(end, utf8, (size_t)length);
    buffer->key.data = buffer->bytes;
    buffer->key.bytes = (uint32_t)(end - buffer->bytes) + (uint32_t)length;
    return true;
}

/* Returns a new reference that keeps the key's bytes alive, or NULL with an exception. */
static PyObject *encode_key(Table *self, PyObject *key, struct key_buffer *buffer)
{
    if (PyUnicode_CheckExact(key) && encode_short_str(key, buffer))
        return Py_NewRef(Py_None);
    PyObject *encoded = PyObject_CallOneArg(self->encode_key, key);
    if (!encoded)
        return NULL;
    if (!PyBytes_CheckExact(encoded) || PyBytes_GET_SIZE(encoded) > (Py_ssize_t)UF_KEY_BYTES) {
        PyErr_Format(PyExc_SystemError, "encode_key must return at most %u bytes", UF_KEY_BYTES);
        Py_DECREF(encoded);
        return NULL;
    }
    buffer->key.data = PyBytes_AS_STRING(encoded);
    buffer->key.bytes = (uint32_t)PyBytes_GET_SIZE(encoded);
    return encoded;
}

/* ---- handles ---------------------------------------------------------------------- */

static Handle *new_handle(PyTypeObject *type, Table *table)
{
    Handle *self = PyObject_New(Handle, type);
    if (!self)
        return NULL;
    Py_INCREF(table);
    self->table = table;
    self->active = false;
    self->fenced = false;
    self->followers = 0;
    self->fork_count = uf_fork_count();
    return self;
}

static struct uf_table *core(Handle *self)
{
    return &self->table->mapping->table;
}

/* In a forked child the handle is a copy of the parent's: the flight is not the child's. */
static bool is_mine(const Handle *self)
{
    return self->active && self->fork_count == uf_fork_count();
}

static void free_handle(Handle *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->table);
    PyObject_Free(self);
    Py_DECREF(type);
}

static void lead_abandon(Handle *self)
{
    if (!is_mine(self))
        return;
    self->active = false;
    if (uf_abandon(core(self), &self->flight, UF_TRY) == UF_BUSY) {
        Py_BEGIN_ALLOW_THREADS
        uf_abandon(core(self), &self->flight, UF_WAIT);
        Py_END_ALLOW_THREADS
    }
}

static void lead_dealloc(Handle *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    lead_abandon(self);
    PyErr_Restore(type, value, traceback);
    free_handle(self);
}

/* Several followers take several system calls, and threads of this process among them want the
 * interpreter lock at once. After a single one there is nobody to pass on to. */
static void announce(Handle *self, const struct uf_wakes *wakes, uint32_t followers)
{
    if (followers <= 1) {
        uf_post(core(self), wakes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    uf_announce(core(self), &self->flight, wakes, followers);
    Py_END_ALLOW_THREADS
}

static enum uf_status finish(Handle *self, const struct uf_result *result)
{
    struct uf_remains remains;
    struct uf_wakes wakes;
    if (!is_mine(self))
        return UF_FENCED;
    Py_XINCREF((PyObject *)result->value); /* before followers can see it */
    enum uf_status status =
        uf_finish_quietly(core(self), &self->flight, result, UF_TRY, &remains, &wakes);
    if (status == UF_BUSY) {
        Py_BEGIN_ALLOW_THREADS
        status = uf_finish(core(self), &self->flight, result, UF_WAIT, &remains);
        Py_END_ALLOW_THREADS
    } else {
        announce(self, &wakes, remains.followers);
    }
    self->active = status == UF_NEEDS_PAYLOAD;
    self->fenced = status == UF_FENCED;
    self->followers = remains.followers;
    if (!remains.value_kept)
        Py_XDECREF((PyObject *)result->value);
    Py_XDECREF((PyObject *)remains.value);
    return status;
}

/* finish(value) -> bool: False if the value has to be encoded and published first. */
static PyObject *lead_finish(Handle *self, PyObject *value)
{
    const struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = value};
    return PyBool_FromLong(finish(self, &result) != UF_NEEDS_PAYLOAD);
}

/* fail() -> bool: ends the flight if nobody waits; False if the exception has to be encoded
 * and published first. */
static PyObject *lead_fail(Handle *self, PyObject *Py_UNUSED(unused))
{
    const struct uf_result result = {.kind = UF_PAYLOAD_ERROR};
    return PyBool_FromLong(finish(self, &result) != UF_NEEDS_PAYLOAD);
}

/* publish(kind, payload, value, /) -> bool: payload is (bytes, sum) for EXTRA and EXTRA_BYTES,
 * bytes-like for all other kinds; value is the object for followers of this process, but with ERROR.
 * False if the flight was not the caller's any more, or its lock could not be had. */
static PyObject *lead_publish(Handle *self, PyObject *args)
{
    int kind;
    PyObject *payload, *value;
    Py_buffer buffer = {0};
    if (!PyArg_ParseTuple(args, "iOO", &kind, &payload, &value))
        return NULL;
    bool extra = kind >= 0 && uf_is_extra((uint32_t)kind);
    if (!extra && (kind < 0 || !uf_is_inline((uint32_t)kind)))
        return PyErr_Format(PyExc_ValueError, "no payload of kind %d can be published", kind);
    struct uf_result result = {.kind = (enum uf_payload)kind,
                               .value = kind == UF_PAYLOAD_ERROR ? NULL : value};
    unsigned long long bytes = 0, sum = 0;
    if (extra) {
        if (!PyArg_ParseTuple(payload, "KK", &bytes, &sum))
            return NULL;
        result.bytes = bytes;
        result.sum = sum;
    } else {
        if (PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE) != 0)
            return NULL;
        result.data = buffer.buf;
        result.bytes = (uint64_t)buffer.len;
    }
    bool fits = extra || result.bytes <= core(self)->inline_bytes;
    enum uf_status status = fits ? finish(self, &result) : UF_OK;
    if (buffer.obj)
        PyBuffer_Release(&buffer);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "%llu bytes do not fit inline",
                            (unsigned long long)result.bytes);
    return PyBool_FromLong(status == UF_OK);
}

/* seal(): no newcomer joins from here on; for a leader that encodes before it finishes. */
static PyObject *lead_seal(Handle *self, PyObject *Py_UNUSED(unused))
{
    if (is_mine(self) && uf_seal(core(self), &self->flight, UF_TRY) == UF_BUSY) {
        Py_BEGIN_ALLOW_THREADS
        uf_seal(core(self), &self->flight, UF_WAIT);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *lead_abandon_method(Handle *self, PyObject *Py_UNUSED(unused))
{
    lead_abandon(self);
    Py_RETURN_NONE;
}

static enum uf_status leave(Handle *self, enum uf_leaving how, struct uf_remains *remains)
{
    *remains = (struct uf_remains){0};
    if (!is_mine(self))
        return UF_OK;
    self->active = false;
    enum uf_status status =
        uf_leave(core(self), &self->flight, self->owner, how, UF_TRY, remains);
    if (status == UF_BUSY) {
        Py_BEGIN_ALLOW_THREADS
        status = uf_leave(core(self), &self->flight, self->owner, how, UF_WAIT, remains);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF((PyObject *)remains->value);
    return status;
}

static void follow_dealloc(Handle *self)
{
    struct uf_remains remains;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    leave(self, UF_LEAVING_EMPTY, &remains);
    if (remains.extra_segment) /* nobody is left to unlink it here: leave word */
        UF_STORE(core(self)->header->leaked, 1);
    PyErr_Restore(type, value, traceback);
    free_handle(self);
}

/* leave(how=LEAVING_EMPTY) -> bool: True if the extra segment has to be unlinked now. */
static PyObject *follow_leave(Handle *self, PyObject *const *args, Py_ssize_t count)
{
    struct uf_remains remains;
    long how = count > 0 ? PyLong_AsLong(args[0]) : UF_LEAVING_EMPTY;
    if (how == -1 && PyErr_Occurred())
        return NULL;
    leave(self, (enum uf_leaving)how, &remains);
    return PyBool_FromLong(remains.extra_segment);
}

static bool parse_u64(PyObject *number, uint64_t none, uint64_t *result)
{
    if (number == Py_None) {
        *result = none;
        return true;
    }
    *result = PyLong_AsUnsignedLongLong(number);
    return !PyErr_Occurred();
}

/* When the calling thread has to look for signals, however long it still may sleep: one that
 * arrives just before the sleep does not interrupt it. Python runs handlers in the main thread,
 * and in the only thread of a forked child, which has the id of its process as well. */
static uint64_t next_signal_check(uint64_t deadline_ns)
{
    uint64_t check_ns = gettid() == getpid() ? uf_now_ns() + SIGNAL_CHECK_NS : UF_NO_DEADLINE;
    return check_ns < deadline_ns ? check_ns : deadline_ns;
}

/* wait(deadline_ns | None) -> status; runs signal handlers, and passes on what they raise. */
static PyObject *follow_wait(Handle *self, PyObject *deadline)
{
    uint64_t deadline_ns, until_ns;
    enum uf_status status;
    if (!parse_u64(deadline, UF_NO_DEADLINE, &deadline_ns))
        return NULL;
    do {
        if (!is_mine(self))
            return PyLong_FromLong(UF_DAMAGED);
        until_ns = next_signal_check(deadline_ns);
        Py_BEGIN_ALLOW_THREADS
        status = uf_wait(core(self), &self->flight, self->owner, until_ns);
        Py_END_ALLOW_THREADS
        if (status == UF_TIMED_OUT && until_ns < deadline_ns)
            status = UF_INTERRUPTED;
        if (status == UF_INTERRUPTED && PyErr_CheckSignals() != 0)
            return NULL;
    } while (status == UF_INTERRUPTED);
    return PyLong_FromLong(status);
}

/* One struct, two types: a handle becomes a Lead or a Follow by what the core made of it. */
static void become(Handle *self, PyTypeObject *type)
{
    PyTypeObject *former = Py_TYPE(self);
    Py_INCREF(type);
    ((PyObject *)self)->ob_type = type;
    Py_DECREF(former);
}

/* takeover(lease_ns | None, max_takeovers) -> Lead | status. This very object turns into the
 * Lead: whoever holds it can still give it back, wherever an exception strikes. */
static PyObject *follow_takeover(Handle *self, PyObject *args)
{
    PyObject *lease;
    unsigned int max_takeovers;
    struct uf_caller caller = {.owner = self->owner, .patience = UF_TRY};
    if (!PyArg_ParseTuple(args, "OI", &lease, &max_takeovers) ||
        !parse_u64(lease, UF_NO_LEASE, &caller.lease_ns))
        return NULL;
    if (!is_mine(self))
        return PyLong_FromLong(UF_DAMAGED);
    caller.max_takeovers = max_takeovers;
    enum uf_status status = uf_takeover(core(self), &caller, &self->flight);
    if (status == UF_BUSY) {
        caller.patience = UF_WAIT;
        Py_BEGIN_ALLOW_THREADS
        status = uf_takeover(core(self), &caller, &self->flight);
        Py_END_ALLOW_THREADS
    }
    if (status != UF_LEADER)
        return PyLong_FromLong(status);
    become(self, self->table->lead_type);
    return Py_NewRef((PyObject *)self);
}

/* take() -> (kind, payload, value, epoch, (followers, takeovers, leader_pid)).  payload is a copy
 * (bytes) of an inline one, (bytes, sum) of an extra one, None else; value is (object,) if the
 * leader published from this process, None else.  kind 0: the payload fails its checksum. */
static PyObject *follow_take(Handle *self, PyObject *Py_UNUSED(unused))
{
    struct uf_view view = {.kind = UF_PAYLOAD_NONE};
    PyObject *payload = NULL, *value;
    if (is_mine(self) && uf_view(core(self), &self->flight, &view) != UF_OK)
        view = (struct uf_view){.kind = UF_PAYLOAD_NONE};
    if (view.data) {
        payload = PyBytes_FromStringAndSize(view.data, (Py_ssize_t)view.bytes);
        if (!payload)
            return NULL;
        /* Of the copy: what is decoded is what was checked. */
        if (uf_checksum(PyBytes_AS_STRING(payload), view.bytes) != view.sum) {
            uf_damage(core(self));
            view.kind = UF_PAYLOAD_NONE;
        }
    } else if (uf_is_extra(view.kind)) {
        payload = Py_BuildValue("KK", (unsigned long long)view.bytes, (unsigned long long)view.sum);
    } else {
        payload = Py_NewRef(Py_None);
    }
    value = view.value ? PyTuple_Pack(1, (PyObject *)view.value) : Py_NewRef(Py_None);
    if (!payload || !value) {
        Py_XDECREF(payload);
        Py_XDECREF(value);
        return NULL;
    }
    return Py_BuildValue("iNNK(III)", (int)view.kind, payload, value,
                         (unsigned long long)view.epoch, (unsigned)view.followers,
                         (unsigned)view.takeovers, (unsigned)view.leader_pid);
}

static bool is_joinable(Handle *self)
{
    bool leads = Py_TYPE(self) == self->table->lead_type;
    return is_mine(self) && uf_is_joinable(core(self), &self->flight) &&
           (!leads || uf_is_leading(core(self), &self->flight, uf_now_ns()));
}

#define HANDLE_GETTER(name, expression, build)                                            \
    static PyObject *handle_##name(Handle *self, void *Py_UNUSED(closure))                \
    {                                                                                     \
        return build(expression);                                                         \
    }
HANDLE_GETTER(slot, self->flight.slot, PyLong_FromUnsignedLong)
HANDLE_GETTER(epoch, self->flight.epoch, PyLong_FromUnsignedLongLong)
HANDLE_GETTER(generation, self->flight.generation, PyLong_FromUnsignedLongLong)
HANDLE_GETTER(takeovers, self->flight.takeovers, PyLong_FromUnsignedLong)
HANDLE_GETTER(leader_pid, self->flight.leader_pid, PyLong_FromUnsignedLong)
HANDLE_GETTER(followers, self->followers, PyLong_FromUnsignedLong)
HANDLE_GETTER(active, is_mine(self), PyBool_FromLong)
HANDLE_GETTER(joinable, is_joinable(self), PyBool_FromLong)
HANDLE_GETTER(fenced, self->fenced, PyBool_FromLong)
HANDLE_GETTER(inline_bytes, core(self)->inline_bytes, PyLong_FromUnsignedLong)
HANDLE_GETTER(result_bytes, core(self)->result_bytes, PyLong_FromUnsignedLongLong)

static PyObject *handle_table(Handle *self, void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)self->table);
}

#define HANDLE_GETSET(name, doc)                                                          \
    {#name, (getter)handle_##name, NULL, PyDoc_STR(doc), NULL}

static PyGetSetDef handle_getset[] = {
    HANDLE_GETSET(table, "The table of the flight, though its Merger may have closed it."),
    HANDLE_GETSET(slot, "Index of the flight's slot in the table."),
    HANDLE_GETSET(epoch, "Number of the leadership in its slot."),
    HANDLE_GETSET(generation, "Number of the flight in its slot."),
    HANDLE_GETSET(takeovers, "Takeovers of the flight when this handle was made."),
    HANDLE_GETSET(leader_pid, "Process of the leader when this handle was made."),
    HANDLE_GETSET(followers, "Lead: who was waiting when the flight ended."),
    HANDLE_GETSET(joinable, "Whether a caller that comes now may still join the flight."),
    HANDLE_GETSET(fenced, "Lead: whether finish found that somebody else leads."),
    HANDLE_GETSET(inline_bytes, "Largest payload that fits into the slot."),
    HANDLE_GETSET(result_bytes, "Largest payload that may be published at all."),
    HANDLE_GETSET(active, "Whether this handle still has something to give back."),
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef lead_methods[] = {
    {"finish", (PyCFunction)lead_finish, METH_O,
     PyDoc_STR("End the flight with a value; False if it has to be encoded and published.")},
    {"fail", (PyCFunction)lead_fail, METH_NOARGS,
     PyDoc_STR("End the flight with an exception; False if it has to be encoded and published.")},
    {"publish", (PyCFunction)lead_publish, METH_VARARGS,
     PyDoc_STR("publish(kind, payload, value): end the flight with a payload; False if fenced.")},
    {"seal", (PyCFunction)lead_seal, METH_NOARGS, PyDoc_STR("Close the flight to newcomers.")},
    {"abandon", (PyCFunction)lead_abandon_method, METH_NOARGS,
     PyDoc_STR("End the leadership without a result: a follower takes over.")},
    {NULL, NULL, 0, NULL}};

static PyMethodDef follow_methods[] = {
    {"wait", (PyCFunction)follow_wait, METH_O,
     PyDoc_STR("wait(deadline_ns): block until there is something to do; a status.")},
    {"take", (PyCFunction)follow_take, METH_NOARGS, PyDoc_STR("What a DONE flight holds.")},
    {"takeover", (PyCFunction)follow_takeover, METH_VARARGS,
     PyDoc_STR("takeover(lease_ns, max_takeovers): a Lead, or a status.")},
    {"leave", (PyCFunction)(void (*)(void))follow_leave, METH_FASTCALL,
     PyDoc_STR("leave(how): give the cell back; True: unlink the extra segment.")},
    {NULL, NULL, 0, NULL}};

#define HANDLE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE)

static PyType_Slot lead_slots[] = {
    {Py_tp_dealloc, lead_dealloc},
    {Py_tp_methods, lead_methods},
    {Py_tp_getset, handle_getset},
    {Py_tp_doc, "Leadership of one flight; abandons it when deallocated unfinished."},
    {0, NULL}};
static PyType_Spec lead_spec = {"uniflight_mp._shm.Lead", sizeof(Handle), 0, HANDLE_FLAGS, lead_slots};

static PyType_Slot follow_slots[] = {
    {Py_tp_dealloc, follow_dealloc},
    {Py_tp_methods, follow_methods},
    {Py_tp_getset, handle_getset},
    {Py_tp_doc, "One waiter's place in a flight; leaves it when deallocated."},
    {0, NULL}};
static PyType_Spec follow_spec = {"uniflight_mp._shm.Follow", sizeof(Handle), 0, HANDLE_FLAGS,
                                  follow_slots};

/* ---- table ------------------------------------------------------------------------ */

static void table_dealloc(Table *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->mapping)
        uf_mapping_close(self->mapping);
    Py_XDECREF(self->path);
    Py_XDECREF(self->encode_key);
    Py_XDECREF(self->lead_type);
    Py_XDECREF(self->follow_type);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* NULL with an exception. */
static struct uf_table *table_of(Table *self)
{
    struct uf_table *table = uf_mapping_table(self->mapping);
    if (!table)
        PyErr_SetString(PyExc_MemoryError, "no memory for this process's own table");
    return table;
}

/* The same, for what writes into it. */
static struct uf_table *writable(Table *self)
{
    if (!self->read_only)
        return table_of(self);
    PyErr_SetString(PyExc_RuntimeError, "this table was attached read-only");
    return NULL;
}

static enum uf_status begin(Table *self, struct uf_caller *caller, const struct uf_key *key,
                            struct uf_flight *flight)
{
    struct uf_table *table = &self->mapping->table; /* table_begin has asked table_of */
    enum uf_status status = uf_seat(self->mapping, &caller->owner);
    if (status != UF_OK)
        return status;
    caller->patience = UF_TRY;
    status = uf_begin(table, caller, key, flight);
    if (status == UF_BUSY) {
        caller->patience = UF_WAIT;
        Py_BEGIN_ALLOW_THREADS
        status = uf_begin(table, caller, key, flight);
        Py_END_ALLOW_THREADS
    }
    return status;
}

/* The caller's doorbell, or NULL with *ok false and an exception if it is none. */
static const unsigned char *parse_doorbell(PyObject *doorbell, bool *ok)
{
    *ok = PyBytes_CheckExact(doorbell) && PyBytes_GET_SIZE(doorbell) == UF_DOORBELL_BYTES;
    if (*ok)
        return (const unsigned char *)PyBytes_AS_STRING(doorbell);
    PyErr_Format(PyExc_ValueError, "a doorbell is %u bytes", UF_DOORBELL_BYTES);
    return NULL;
}

/* begin(key, lease_ns | None, max_takeovers, doorbell=…, /) -> Lead | Follow | status | None.
 * doorbell: 16 bytes, of the caller's event loop; a thread that blocks gives none.
 * None: the table needs care (see uf_mapping_needs_care) before it is used again. */
static PyObject *table_begin(Table *self, PyObject *const *args, Py_ssize_t count)
{
    struct uf_caller caller = {.doorbell = NULL};
    struct key_buffer buffer;
    bool ok = count == 3 || count == 4;
    if (!ok)
        PyErr_SetString(PyExc_TypeError, "begin takes key, lease_ns, max_takeovers[, doorbell]");
    if (!ok || !writable(self))
        return NULL;
    if (count == 4)
        caller.doorbell = parse_doorbell(args[3], &ok);
    if (!ok)
        return NULL;
    if (!parse_u64(args[1], UF_NO_LEASE, &caller.lease_ns))
        return NULL;
    unsigned long max_takeovers = PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    caller.max_takeovers = max_takeovers > UINT32_MAX ? UINT32_MAX : (uint32_t)max_takeovers;
    if (self->path != Py_None &&
        uf_mapping_needs_care(self->mapping, PyUnicode_AsUTF8(self->path)))
        Py_RETURN_NONE;
    PyObject *keep = encode_key(self, args[0], &buffer);
    if (!keep)
        return NULL;
    /* Made before the flight, so that no failure to allocate can lose one. */
    Handle *handle = new_handle(self->lead_type, self);
    if (!handle) {
        Py_DECREF(keep);
        return NULL;
    }
    enum uf_status status = begin(self, &caller, &buffer.key, &handle->flight);
    Py_DECREF(keep);
    if (status != UF_LEADER && status != UF_FOLLOWER) {
        Py_DECREF(handle);
        return PyLong_FromLong(status);
    }
    if (status == UF_FOLLOWER)
        become(handle, self->follow_type);
    handle->owner = caller.owner;
    handle->active = true;
    return (PyObject *)handle;
}

/* forget(key) -> bool | status */
static PyObject *table_forget(Table *self, PyObject *key)
{
    struct key_buffer buffer;
    bool found = false;
    struct uf_table *table = writable(self);
    if (!table)
        return NULL;
    PyObject *keep = encode_key(self, key, &buffer);
    if (!keep)
        return NULL;
    enum uf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = uf_forget(table, &buffer.key, UF_WAIT, &found);
    Py_END_ALLOW_THREADS
    Py_DECREF(keep);
    return status == UF_OK ? PyBool_FromLong(found) : PyLong_FromLong(status);
}

/* reap() -> bool: sweeps every group; False if a lock could not be had or the table is damaged. */
static PyObject *table_reap(Table *self, PyObject *Py_UNUSED(unused))
{
    bool complete = true;
    struct uf_table *table = writable(self);
    if (!table)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (uint32_t group = 0; group < table->groups; group++)
        complete &= uf_reap(table, group, UF_WAIT) == UF_OK;
    uf_threads_reap(table);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(complete);
}

/* check() -> None | str: the first broken invariant; takes each group's lock. */
static PyObject *table_check(Table *self, PyObject *Py_UNUSED(unused))
{
    struct uf_table *table = writable(self);
    if (!table)
        return NULL;
    for (uint32_t group = 0; group < table->groups; group++) {
        struct uf_fault fault = {.slot = 0, .what = "the lock cannot be had"};
        enum uf_status status;
        bool sound = false;
        Py_BEGIN_ALLOW_THREADS
        status = uf_group_lock(table, group, UF_WAIT);
        if (status == UF_OK) {
            sound = uf_group_check_locked(table, group, &fault);
            uf_group_unlock(table, group);
        }
        Py_END_ALLOW_THREADS
        if (!sound)
            return PyUnicode_FromFormat("group %u, slot %u: %s", group, fault.slot, fault.what);
    }
    Py_RETURN_NONE;
}

static PyObject *snapshot_tuple(uint32_t slot, const struct uf_snapshot *s)
{
    static const char *const states[] = {"free", "running", "orphaned", "done"};
    uint64_t now_ns = uf_now_ns();
    double age = now_ns > s->started_ns ? (double)(now_ns - s->started_ns) / 1e9 : 0.0;
    return Py_BuildValue("y#sIIKdIIKOOIKK", s->key, (Py_ssize_t)s->key_bytes, states[s->state],
                         (unsigned)s->leader_pid, (unsigned)s->leader_tid,
                         (unsigned long long)s->leader_start_time, age, (unsigned)s->followers,
                         (unsigned)s->takeovers, (unsigned long long)s->payload_bytes,
                         s->attached ? Py_True : Py_False, s->leaderless ? Py_True : Py_False,
                         (unsigned)slot, (unsigned long long)s->generation,
                         (unsigned long long)s->epoch);
}

/* flights() -> list of (key, state, leader_pid, leader_tid, leader_start_time, age, followers,
 * takeovers, result_bytes, attached, leaderless, slot, generation, epoch); takes no lock. */
static PyObject *table_flights(Table *self, PyObject *Py_UNUSED(unused))
{
    struct uf_table *table = table_of(self);
    PyObject *list = table ? PyList_New(0) : NULL;
    for (uint32_t slot = 0; list && slot < uf_slot_count(table); slot++) {
        struct uf_snapshot snapshot;
        if (!uf_snapshot(table, slot, !self->read_only, &snapshot))
            continue;
        PyObject *item = snapshot_tuple(slot, &snapshot);
        if (!item || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* threads() -> list of (pid, tid, start_time): records that were not given back. */
static PyObject *table_threads(Table *self, PyObject *Py_UNUSED(unused))
{
    struct uf_table *table = table_of(self);
    PyObject *list = table ? PyList_New(0) : NULL;
    for (uint32_t i = 0; list && i < table->threads; i++) {
        const struct uf_thread *t = &table->thread[i];
        if (UF_LOAD(t->pid) == 0)
            continue;
        PyObject *item = Py_BuildValue("IIK", (unsigned)UF_LOAD(t->pid), (unsigned)UF_LOAD(t->tid),
                                       (unsigned long long)UF_LOAD(t->start_time));
        if (!item || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* totals() -> (leaders, followers, takeovers, failures, timeouts, fenced, published_bytes,
 * (solo, ...)) */
static PyObject *table_totals(Table *self, PyObject *Py_UNUSED(unused))
{
    struct uf_totals t;
    const struct uf_table *table = table_of(self);
    if (!table)
        return NULL;
    uf_totals(table, &t);
    PyObject *solo = PyTuple_New(UF_SOLO_REASONS);
    for (Py_ssize_t i = 0; solo && i < UF_SOLO_REASONS; i++) {
        PyObject *count = PyLong_FromUnsignedLongLong(t.solo[i]);
        if (!count)
            Py_CLEAR(solo);
        else
            PyTuple_SET_ITEM(solo, i, count);
    }
    if (!solo)
        return NULL;
    return Py_BuildValue("KKKKKKKN", (unsigned long long)t.leaders, (unsigned long long)t.followers,
                         (unsigned long long)t.takeovers, (unsigned long long)t.failures,
                         (unsigned long long)t.timeouts, (unsigned long long)t.fenced,
                         (unsigned long long)t.published_bytes, solo);
}

/* usage() -> (slots, cells, threads): in use now, dead owners included. */
static PyObject *table_usage(Table *self, PyObject *Py_UNUSED(unused))
{
    struct uf_usage usage;
    const struct uf_table *table = table_of(self);
    if (!table)
        return NULL;
    uf_usage(table, &usage);
    return Py_BuildValue("III", (unsigned)usage.slots, (unsigned)usage.cells,
                         (unsigned)usage.threads);
}

/* geometry() -> dict of the creator's limits, rounded, and what a reader may want to know. */
static PyObject *table_geometry(Table *self, PyObject *Py_UNUSED(unused))
{
    const struct uf_table *t = table_of(self);
    if (!t)
        return NULL;
    return Py_BuildValue(
        "{sIsIsIsIsKsKsIsIsIsK}", "flights", (unsigned)uf_slot_count(t), "waiters_per_group",
        (unsigned)t->cells, "threads", (unsigned)t->threads, "inline_bytes",
        (unsigned)t->inline_bytes, "result_bytes", (unsigned long long)t->result_bytes, "bytes",
        (unsigned long long)t->bytes, "asked_flights", (unsigned)t->header->asked_flights,
        "asked_waiters", (unsigned)t->header->asked_waiters, "creator_pid",
        (unsigned)t->header->creator_pid, "created_ns", (unsigned long long)t->header->created_ns);
}

/* count_solo(reason): one call ran alone; `reason` is an index of SOLO_REASONS. */
static PyObject *table_count_solo(Table *self, PyObject *reason)
{
    long index = PyLong_AsLong(reason);
    if (PyErr_Occurred() || !writable(self))
        return NULL;
    if (index < 0 || index >= UF_SOLO_REASONS)
        return PyErr_Format(PyExc_ValueError, "no solo reason %ld", index);
    atomic_fetch_add(&self->mapping->table.header->solo[index], 1);
    Py_RETURN_NONE;
}

/* is_current(slot, epoch) -> bool: whether that leadership may still need its extra segment. */
static PyObject *table_is_current(Table *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "IK", &slot, &epoch))
        return NULL;
    return PyBool_FromLong(uf_is_current(&self->mapping->table, slot, epoch));
}

/* take_leaked() -> bool: the same as `leaked`; says so to one caller only. */
static PyObject *table_take_leaked(Table *self, PyObject *Py_UNUSED(unused))
{
    if (!writable(self))
        return NULL;
    return PyBool_FromLong((long)atomic_exchange(&self->mapping->table.header->leaked, 0));
}

static PyObject *table_damage(Table *self, PyObject *Py_UNUSED(unused))
{
    if (!writable(self))
        return NULL;
    uf_damage(&self->mapping->table);
    Py_RETURN_NONE;
}

static PyObject *table_damaged(Table *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(uf_is_damaged(&self->mapping->table));
}

static PyObject *table_leaked(Table *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong((long)UF_LOAD(self->mapping->table.header->leaked));
}

static PyObject *table_identity(Table *self, void *Py_UNUSED(closure))
{
    return Py_BuildValue("KK", (unsigned long long)self->mapping->device,
                         (unsigned long long)self->mapping->inode);
}

static PyObject *table_path(Table *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->path);
}

static PyMethodDef table_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))table_begin, METH_FASTCALL,
     PyDoc_STR("begin(key, lease_ns, max_takeovers): a Lead, a Follow, a status, or None.")},
    {"forget", (PyCFunction)table_forget, METH_O, PyDoc_STR("Detach a key's flight.")},
    {"reap", (PyCFunction)table_reap, METH_NOARGS, PyDoc_STR("Free what the dead left behind.")},
    {"check", (PyCFunction)table_check, METH_NOARGS, PyDoc_STR("The first broken invariant.")},
    {"flights", (PyCFunction)table_flights, METH_NOARGS, PyDoc_STR("Slots in use, without a lock.")},
    {"threads", (PyCFunction)table_threads, METH_NOARGS, PyDoc_STR("Thread records in use.")},
    {"totals", (PyCFunction)table_totals, METH_NOARGS, PyDoc_STR("Counters since creation.")},
    {"usage", (PyCFunction)table_usage, METH_NOARGS, PyDoc_STR("(slots, cells, threads) in use.")},
    {"geometry", (PyCFunction)table_geometry, METH_NOARGS, PyDoc_STR("Limits and sizes.")},
    {"count_solo", (PyCFunction)table_count_solo, METH_O, PyDoc_STR("Count a call that ran alone.")},
    {"is_current", (PyCFunction)table_is_current, METH_VARARGS,
     PyDoc_STR("Whether a leadership may still need its extra segment.")},
    {"take_leaked", (PyCFunction)table_take_leaked, METH_NOARGS,
     PyDoc_STR("Whether extra segments may have been left behind.")},
    {"damage", (PyCFunction)table_damage, METH_NOARGS, PyDoc_STR("Give the table up as damaged.")},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef table_getset[] = {
    {"damaged", (getter)table_damaged, NULL, PyDoc_STR("Whether it was given up."), NULL},
    {"leaked", (getter)table_leaked, NULL, PyDoc_STR("Whether extra segments may lie about."), NULL},
    {"path", (getter)table_path, NULL, PyDoc_STR("Path of the segment's file, or None."), NULL},
    {"identity", (getter)table_identity, NULL, PyDoc_STR("(device, inode) of the segment."), NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot table_slots[] = {{Py_tp_dealloc, table_dealloc},
                                    {Py_tp_methods, table_methods},
                                    {Py_tp_getset, table_getset},
                                    {Py_tp_doc, "A mapped table."},
                                    {0, NULL}};
static PyType_Spec table_spec = {"uniflight_mp._shm.Table", sizeof(Table), 0, HANDLE_FLAGS,
                                 table_slots};

/* ---- extra segments --------------------------------------------------------------- */

static int extra_getbuffer(Extra *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data, self->bytes, 1, flags);
}

static void extra_dealloc(Extra *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->data)
        munmap(self->data, (size_t)self->bytes);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot extra_slots[] = {{Py_tp_dealloc, extra_dealloc},
                                    {Py_bf_getbuffer, extra_getbuffer},
                                    {Py_tp_doc, "A mapped extra segment, as a buffer."},
                                    {0, NULL}};
static PyType_Spec extra_spec = {"uniflight_mp._shm.Extra", sizeof(Extra), 0, HANDLE_FLAGS,
                                 extra_slots};

/* ---- module ----------------------------------------------------------------------- */

static bool parse_limits(PyObject *args, int *fd, struct uf_limits *limits, Py_buffer *key)
{
    unsigned long long result_bytes;
    unsigned int flights, waiters, threads, inline_bytes;
    if (!PyArg_ParseTuple(args, "i(IIIIK)y*", fd, &flights, &waiters, &threads, &inline_bytes,
                          &result_bytes, key))
        return false;
    *limits = (struct uf_limits){flights, waiters, threads, inline_bytes, result_bytes};
    return true;
}

/* Takes the mapping over, also if there is no memory. */
static PyObject *new_table(const ModuleState *state, struct uf_mapping *mapping, PyObject *path,
                           PyObject *encode, bool read_only)
{
    Table *self = PyObject_New(Table, state->table_type);
    if (!self) {
        uf_mapping_close(mapping);
        return NULL;
    }
    self->mapping = mapping;
    self->path = Py_NewRef(path);
    self->encode_key = Py_NewRef(encode);
    self->lead_type = (PyTypeObject *)Py_NewRef((PyObject *)state->lead_type);
    self->follow_type = (PyTypeObject *)Py_NewRef((PyObject *)state->follow_type);
    self->read_only = read_only;
    return (PyObject *)self;
}

/* make_private(limits, encode_key) -> Table: in memory of this process alone. */
static PyObject *shm_make_private(PyObject *module, PyObject *args)
{
    PyObject *encode;
    struct uf_limits limits;
    struct uf_mapping *mapping;
    unsigned long long result_bytes;
    if (!PyArg_ParseTuple(args, "(IIIIK)O", &limits.flights, &limits.waiters, &limits.threads,
                          &limits.inline_bytes, &result_bytes, &encode))
        return NULL;
    limits.result_bytes = result_bytes;
    switch (uf_mapping_make_private(&limits, &mapping)) {
    case UF_ATTACHED:
        return new_table(PyModule_GetState(module), mapping, Py_None, encode, false);
    case UF_BAD_GEOMETRY:
        return PyErr_Format(PyExc_ValueError, "limits out of range");
    default:
        return PyErr_NoMemory();
    }
}

/* cpu() -> int: the CPU that the calling thread is on; it may be on another by now. */
static PyObject *shm_cpu(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    int cpu = sched_getcpu();
    return PyLong_FromLong(cpu < 0 ? 0 : cpu);
}

/* node() -> int: the NUMA node of that CPU, as the kernel sees it. */
static PyObject *shm_node(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    unsigned int cpu, node;
    return PyLong_FromLong(getcpu(&cpu, &node) == 0 ? (long)node : 0);
}

/* bind(fd, bytes, node): pages of the file that are allocated from here on are the node's, as long
 * as it has any: MPOL_BIND would have the process killed where another node has room. The
 * policy is the file's own, whoever maps or allocates them (numa_memory_policy of the kernel's
 * documentation, "Shared Policy"). Raises OSError. */
static PyObject *shm_bind(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    unsigned long long bytes;
    unsigned int node;
    unsigned long mask[UF_MAX_NODES / UF_BITS_OF_LONG] = {0};
    if (!PyArg_ParseTuple(args, "iKI", &fd, &bytes, &node))
        return NULL;
    if (node >= UF_MAX_NODES)
        return PyErr_Format(PyExc_ValueError, "no node %u: the last one is %d", node,
                            UF_MAX_NODES - 1);
    mask[node / UF_BITS_OF_LONG] = 1ul << (node % UF_BITS_OF_LONG);
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    long failed = syscall(SYS_mbind, base, bytes, MPOL_PREFERRED, mask, UF_MAX_NODES + 1, 0);
    int error = errno;
    munmap(base, bytes);
    errno = error;
    return failed ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

/* create(fd, limits, hash_key): makes the zeroed file behind `fd`, already of the right size, a table. */
static PyObject *shm_create(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    struct uf_limits limits;
    Py_buffer key;
    if (!parse_limits(args, &fd, &limits, &key))
        return NULL;
    size_t bytes = uf_segment_bytes(&limits);
    bool fits = bytes != 0 && key.len == 16;
    void *base = MAP_FAILED;
    if (fits)
        base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base != MAP_FAILED) {
        uf_table_create(base, &limits, key.buf);
        munmap(base, bytes);
    }
    PyBuffer_Release(&key);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "limits out of range, or a hash key not of 16 bytes");
    if (base == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* segment_bytes(flights, waiters, threads, inline_bytes, result_bytes) -> int; 0: out of range. */
static PyObject *shm_segment_bytes(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct uf_limits limits;
    unsigned long long result_bytes;
    if (!PyArg_ParseTuple(args, "IIIIK", &limits.flights, &limits.waiters, &limits.threads,
                          &limits.inline_bytes, &result_bytes))
        return NULL;
    limits.result_bytes = result_bytes;
    return PyLong_FromUnsignedLongLong(uf_segment_bytes(&limits));
}

/* attach(fd, path | None, encode_key, read_only) -> Table | int (an ATTACH_* reason). */
static PyObject *shm_attach(PyObject *module, PyObject *args)
{
    int fd, read_only;
    PyObject *path, *encode;
    ModuleState *state = PyModule_GetState(module);
    if (!PyArg_ParseTuple(args, "iOOp", &fd, &path, &encode, &read_only))
        return NULL;
    if (path != Py_None && (!PyUnicode_Check(path) || !PyUnicode_AsUTF8(path))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "path must be a str or None");
        return NULL;
    }
    struct uf_mapping *mapping;
    enum uf_attach result = uf_mapping_open(fd, read_only, &mapping);
    if (result != UF_ATTACHED)
        return PyLong_FromLong(result);
    return new_table(state, mapping, path, encode, read_only);
}

/* What `look` finds out about one flight: UF_PENDING, or news. */
static enum uf_status look_at(Handle *follow, const unsigned char *doorbell, uint64_t now_ns,
                    uint64_t *next_ns)
{
    enum uf_status status = UF_DAMAGED;
    if (is_mine(follow))
        status = uf_poll(core(follow), &follow->flight, follow->owner, now_ns);
    if (status == UF_DONE)
        uf_pass_on(core(follow), &follow->flight);
    if (status == UF_PENDING) {
        uint64_t look_ns = uf_next_look_of_loop(core(follow), &follow->flight, doorbell, now_ns);
        *next_ns = look_ns < *next_ns ? look_ns : *next_ns;
    }
    return status;
}

/* look(follows, doorbell, fd) -> ([(follow, status), ...], delay_ns): which of the Follows have news,
 * and in how many nanoseconds to look at the others again if nobody rings. For some seconds from here
 * the loop is rung when one of their leaders ends, too, unless `unwatch` takes that back. Before
 * the look it takes the rings from the loop's descriptor, unless that is -1: what rings after the
 * look makes it readable again. */
static PyObject *shm_look(PyObject *module, PyObject *args)
{
    ModuleState *state = PyModule_GetState(module);
    PyObject *follows, *bell;
    int fd;
    bool ok;
    if (!PyArg_ParseTuple(args, "OOi", &follows, &bell, &fd))
        return NULL;
    const unsigned char *doorbell = parse_doorbell(bell, &ok);
    if (!ok)
        return NULL;
    if (fd >= 0)
        uf_take_rings(fd);
    uint64_t now_ns = uf_now_ns(), next_ns = now_ns + UF_WATCH_OTHERS_NS;
    PyObject *sequence = PySequence_Fast(follows, "look takes Follows");
    PyObject *news = sequence ? PyList_New(0) : NULL;
    Py_ssize_t count = sequence ? PySequence_Fast_GET_SIZE(sequence) : 0;
    for (Py_ssize_t i = 0; news && i < count; i++) {
        Handle *follow = (Handle *)PySequence_Fast_GET_ITEM(sequence, i);
        if (Py_TYPE(follow) != state->follow_type) {
            PyErr_SetString(PyExc_TypeError, "look takes Follows");
            Py_CLEAR(news);
            break;
        }
        enum uf_status status = look_at(follow, doorbell, now_ns, &next_ns);
        if (status == UF_PENDING)
            continue;
        PyObject *entry = Py_BuildValue("Oi", follow, (int)status);
        if (!entry || PyList_Append(news, entry) != 0)
            Py_CLEAR(news);
        Py_XDECREF(entry);
    }
    Py_XDECREF(sequence);
    if (!news)
        return NULL;
    return Py_BuildValue("NK", news, (unsigned long long)(next_ns - now_ns));
}

/* unwatch(doorbell): no leader's end rings that loop from here on. */
static PyObject *shm_unwatch(PyObject *Py_UNUSED(module), PyObject *argument)
{
    bool ok;
    const unsigned char *doorbell = parse_doorbell(argument, &ok);
    if (!ok)
        return NULL;
    uf_watcher_forget_loop(doorbell);
    Py_RETURN_NONE;
}

/* can_watch() -> bool: whether the kernel tells of a leader's end, or waiters have to look. */
static PyObject *shm_can_watch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(uf_can_wait_for_words());
}

/* give_back(anything): a Lead is abandoned, a Follow leaves; anything else is let be.  One C call,
 * so that no signal handler can raise between an exception and this. */
static PyObject *shm_give_back(PyObject *module, PyObject *object)
{
    ModuleState *state = PyModule_GetState(module);
    struct uf_remains remains;
    if (Py_TYPE(object) == state->lead_type) {
        lead_abandon((Handle *)object);
    } else if (Py_TYPE(object) == state->follow_type) {
        leave((Handle *)object, UF_LEAVING_EMPTY, &remains);
        if (remains.extra_segment)
            UF_STORE(core((Handle *)object)->header->leaked, 1);
    }
    Py_RETURN_NONE;
}

/* write_extra(path, payload) -> checksum: makes the file of an extra segment; OSError. */
static PyObject *shm_write_extra(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *path;
    Py_buffer payload;
    uint64_t sum = 0;
    int error;
    if (!PyArg_ParseTuple(args, "sy*", &path, &payload))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = uf_extra_write(path, payload.buf, (size_t)payload.len);
    if (error == 0)
        sum = uf_checksum(payload.buf, (size_t)payload.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&payload);
    if (error == 0)
        return PyLong_FromUnsignedLongLong(sum);
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* Why an extra segment is not what was published; 0: for no other reason than its checksum. */
static PyObject *extra_error(int error)
{
    if (error == 0)
        return PyErr_Format(PyExc_ValueError, "it fails its checksum");
    if (error == EILSEQ)
        return PyErr_Format(PyExc_ValueError, "it has another size than was published");
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* read_extra(path, size, checksum) -> bytes; OSError, or ValueError if it is something else. */
static PyObject *shm_read_extra(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *path;
    unsigned long long sum;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "snK", &path, &bytes, &sum))
        return NULL;
    PyObject *content = PyBytes_FromStringAndSize(NULL, bytes);
    if (!content)
        return NULL;
    char *data = PyBytes_AS_STRING(content);
    int error;
    bool same;
    Py_BEGIN_ALLOW_THREADS
    error = uf_extra_read(path, data, (size_t)bytes);
    same = error == 0 && uf_checksum(data, (size_t)bytes) == sum;
    Py_END_ALLOW_THREADS
    if (same)
        return content;
    Py_DECREF(content);
    return extra_error(error);
}

/* map_extra(path, size, checksum) -> Extra, a buffer; the same otherwise. */
static PyObject *shm_map_extra(PyObject *module, PyObject *args)
{
    ModuleState *state = PyModule_GetState(module);
    const char *path;
    unsigned long long sum;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "snK", &path, &bytes, &sum))
        return NULL;
    Extra *extra = PyObject_New(Extra, state->extra_type);
    if (!extra)
        return NULL;
    extra->bytes = bytes;
    int error;
    bool same;
    Py_BEGIN_ALLOW_THREADS
    error = uf_extra_map(path, (size_t)bytes, &extra->data);
    same = error == 0 && uf_checksum(extra->data, (size_t)bytes) == sum;
    Py_END_ALLOW_THREADS
    if (error != 0)
        extra->data = NULL;
    if (same)
        return (PyObject *)extra;
    Py_DECREF(extra);
    return extra_error(error);
}

static PyObject *shm_format(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLong(uf_format());
}

#ifdef UNIFLIGHT_CRASH_POINTS
#define UF_CRASH_TEXT(name) #name,
static const char *const crash_points[] = {UF_CRASH_POINTS(UF_CRASH_TEXT)};

/* arm(point, action): kill or stop this process when it next reaches the point. */
static PyObject *shm_arm(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *point, *action;
    if (!PyArg_ParseTuple(args, "ss", &point, &action))
        return NULL;
    for (int i = 0; i < UF_CRASH_POINT_COUNT; i++)
        if (strcmp(point, crash_points[i]) == 0) {
            uf_crash_arm((enum uf_crash_point)i,
                         strcmp(action, "kill") == 0 ? UF_CRASH_KILL : UF_CRASH_STOP);
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "no crash point %s", point);
}
#endif

static PyMethodDef module_methods[] = {
    {"create", shm_create, METH_VARARGS, PyDoc_STR("Make a zeroed file a table.")},
    {"make_private", shm_make_private, METH_VARARGS, PyDoc_STR("Make a table without a file.")},
    {"cpu", shm_cpu, METH_NOARGS, PyDoc_STR("The CPU that the calling thread is on.")},
    {"node", shm_node, METH_NOARGS, PyDoc_STR("The NUMA node that the calling thread is on.")},
    {"bind", shm_bind, METH_VARARGS, PyDoc_STR("Have a file's pages allocated on one NUMA node.")},
    {"segment_bytes", shm_segment_bytes, METH_VARARGS, PyDoc_STR("Size of a table.")},
    {"attach", shm_attach, METH_VARARGS, PyDoc_STR("Map a table.")},
    {"look", shm_look, METH_VARARGS, PyDoc_STR("Which Follows have news, and when to look again.")},
    {"unwatch", shm_unwatch, METH_O, PyDoc_STR("Watch no leader for a loop any more.")},
    {"can_watch", shm_can_watch, METH_NOARGS, PyDoc_STR("Whether the kernel tells of deaths.")},
    {"give_back", shm_give_back, METH_O, PyDoc_STR("Let go of a flight, if it is one.")},
    {"write_extra", shm_write_extra, METH_VARARGS, PyDoc_STR("Make an extra segment.")},
    {"map_extra", shm_map_extra, METH_VARARGS, PyDoc_STR("An extra segment, mapped.")},
    {"read_extra", shm_read_extra, METH_VARARGS, PyDoc_STR("Content of an extra segment.")},
    {"format", shm_format, METH_NOARGS, PyDoc_STR("Number of the layout and ABI.")},
#ifdef UNIFLIGHT_CRASH_POINTS
    {"arm", shm_arm, METH_VARARGS, PyDoc_STR("Arm a crash point.")},
#endif
    {NULL, NULL, 0, NULL}};

static const struct {
    const char *name;
    int value;
} constants[] = {
    {"SELF_JOIN", UF_SELF_JOIN}, {"PENDING", UF_PENDING}, {"DONE", UF_DONE},
    {"LEADERLESS", UF_LEADERLESS}, {"TIMED_OUT", UF_TIMED_OUT},
    {"LOCK_TIMEOUT", UF_LOCK_TIMEOUT}, {"NO_SLOT", UF_NO_SLOT}, {"NO_CELL", UF_NO_CELL},
    {"NO_THREAD", UF_NO_THREAD}, {"DAMAGED", UF_DAMAGED},
    {"LEAVING_TIMED_OUT", UF_LEAVING_TIMED_OUT}, {"LEAVING_SERVED", UF_LEAVING_SERVED},
    {"PAYLOAD_NONE", UF_PAYLOAD_NONE}, {"PAYLOAD_VALUE", UF_PAYLOAD_VALUE},
    {"PAYLOAD_EXTRA", UF_PAYLOAD_EXTRA}, {"PAYLOAD_EXTRA_BYTES", UF_PAYLOAD_EXTRA_BYTES},
    {"PAYLOAD_BYTES", UF_PAYLOAD_BYTES}, {"PAYLOAD_ERROR", UF_PAYLOAD_ERROR},
    {"PAYLOAD_LOCAL", UF_PAYLOAD_LOCAL}, {"PAYLOAD_UNSHAREABLE", UF_PAYLOAD_UNSHAREABLE},
    {"PAYLOAD_TOO_LARGE", UF_PAYLOAD_TOO_LARGE}, {"PAYLOAD_DIED", UF_PAYLOAD_DIED},
    {"NOT_A_TABLE", UF_NOT_A_TABLE}, {"OTHER_VERSION", UF_OTHER_VERSION},
    {"BAD_GEOMETRY", UF_BAD_GEOMETRY}, {"NO_MEMORY", UF_NO_MEMORY},
    {"KEY_BYTES", UF_KEY_BYTES}, {"DOORBELL_BYTES", UF_DOORBELL_BYTES}, {"LAYOUT_VERSION", UF_LAYOUT_VERSION},
};

static const char *const solo_reasons[UF_SOLO_REASONS] = {
    [UF_SOLO_TABLE_FULL] = "table_full",
    [UF_SOLO_TOO_MANY_WAITERS] = "too_many_waiters",
    [UF_SOLO_TOO_MANY_THREADS] = "too_many_threads",
    [UF_SOLO_LOCK_TIMEOUT] = "lock_timeout",
    [UF_SOLO_DAMAGED] = "damaged",
    [UF_SOLO_NOT_SHAREABLE] = "not_shareable",
    [UF_SOLO_TOO_LARGE] = "too_large",
    [UF_SOLO_NOT_DECODABLE] = "not_decodable",
    [UF_SOLO_TIMEOUT] = "timeout",
    [UF_SOLO_UNAVAILABLE] = "unavailable"};

static int add_names(PyObject *module, const char *attribute, const char *const *names, int count)
{
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *name = PyUnicode_InternFromString(names[i]);
        if (!name)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, name);
    }
    int result = tuple ? PyModule_AddObjectRef(module, attribute, tuple) : -1;
    Py_XDECREF(tuple);
    return result;
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type) != 0)
        Py_CLEAR(type);
    return type;
}

static int module_exec(PyObject *module)
{
    /* Interpreters of a process share its thread records, and followers in the leader's process get
     * its very object: one that another interpreter must not touch. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "uniflight_mp works in a process's main interpreter only");
        return -1;
    }
    ModuleState *state = PyModule_GetState(module);
    state->table_type = add_type(module, &table_spec);
    state->lead_type = add_type(module, &lead_spec);
    state->follow_type = add_type(module, &follow_spec);
    state->extra_type = add_type(module, &extra_spec);
    if (!state->table_type || !state->lead_type || !state->follow_type || !state->extra_type)
        return -1;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) != 0)
            return -1;
#ifdef UNIFLIGHT_CRASH_POINTS
    if (add_names(module, "CRASH_POINTS", crash_points, UF_CRASH_POINT_COUNT) != 0)
        return -1;
#endif
    return add_names(module, "SOLO_REASONS", solo_reasons, UF_SOLO_REASONS);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    ModuleState *state = PyModule_GetState(module);
    Py_VISIT(state->table_type);
    Py_VISIT(state->lead_type);
    Py_VISIT(state->follow_type);
    Py_VISIT(state->extra_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    ModuleState *state = PyModule_GetState(module);
    Py_CLEAR(state->table_type);
    Py_CLEAR(state->lead_type);
    Py_CLEAR(state->follow_type);
    Py_CLEAR(state->extra_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "uniflight_mp._shm", "The table in shared memory.",
    sizeof(ModuleState), module_methods, module_slots, module_traverse, module_clear, NULL};

PyMODINIT_FUNC PyInit__shm(void)
{
    return PyModuleDef_Init(&module_def);
}
