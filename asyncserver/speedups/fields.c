/* The structs behind Python classes: WaiterFields (net/waiter.py), ConnectionFields (connections/fields.py).
 *
 * Theory of operation. The Python classes inherit from these and find the attributes under the names that they would
 * have had in __slots__; the methods stay theirs. So a Stream, a waiter and all states mean the same, compiled or not,
 * and the C code reaches in a load what costs Python a call. Attributes that C never uses stay in __slots__.
 */
#include "speedups.h"

/* -- Waiter */

LIFE(Waiter, waiter, WAITER_OBJECTS)

#define MEMBER(field, name) {name, T_OBJECT, offsetof(Waiter, field), 0, NULL}, /* NULL is None: no wake-up */
static PyMemberDef waiter_members[] = {
    WAITER_OBJECTS(MEMBER)
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, blocking), 0, NULL},
    {0},
};
#undef MEMBER

static PyType_Slot waiter_slots[] = {SLOTS(waiter, "What a waiter keeps."), {0, NULL}};
PyType_Spec waiter_spec = {"asyncserver.net.waiter.WaiterFields", sizeof(Waiter), 0, FLAGS, waiter_slots};

/* -- Connection */

LIFE(Connection, connection, CONNECTION_OBJECTS)

static PyObject *connection_get_message_start(Connection *self, void *Py_UNUSED(closure)) {
    return Py_BuildValue("(LL)", self->message_sent, self->message_at);
}

static int connection_set_message_start(Connection *self, PyObject *value, void *Py_UNUSED(closure)) {
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_message_start cannot be deleted");
        return -1;
    }
    return PyArg_ParseTuple(value, "LL", &self->message_sent, &self->message_at) ? 0 : -1;
}

static PyGetSetDef connection_getset[] = {
    {"_message_start", (getter)connection_get_message_start, (setter)connection_set_message_start, NULL, NULL},
    {0},
};

#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Connection, field), 0, NULL},
#define NUMBER(field, name) {name, T_LONGLONG, offsetof(Connection, field), 0, NULL}
static PyMemberDef connection_members[] = {
    CONNECTION_OBJECTS(MEMBER)
    NUMBER(answered, "_answered"),
    NUMBER(idle_read, "_idle_read"),
    NUMBER(bytes_received, "bytes_received"),
    NUMBER(bytes_sent, "bytes_sent"),
    {"_events", T_UINT, offsetof(Connection, events), 0, NULL},
    {"_fd", T_INT, offsetof(Connection, fd), 0, NULL},
    {"_spins", T_INT, offsetof(Connection, spins), 0, NULL},
    {"_shared", T_BOOL, offsetof(Connection, shared), 0, NULL},
    {0},
};

static PyType_Slot connection_slots[] = {
    SLOTS(connection, "What a connection keeps."), {Py_tp_getset, connection_getset}, {0, NULL},
};
PyType_Spec connection_spec = {
    "asyncserver.connections.fields.ConnectionFields", sizeof(Connection), 0, FLAGS, connection_slots,
};
