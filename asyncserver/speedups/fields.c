/* The structs behind Python classes: WaiterFields (net/waiter.py), ConnectionFields (connections/fields.py).
 *
 * Theory of operation. The Python classes inherit from these and find the attributes under the names that they would
 * have had in __slots__; the methods stay theirs. So a Stream, a waiter and all states mean the same, compiled or not,
 * and the C code reaches in a load what costs Python a call. Attributes that C never uses stay in __slots__.
 */
#include "speedups.h"

#define OBJECT(struct, name, field) {name, T_OBJECT_EX, offsetof(struct, field), 0, NULL}
#define OPTIONAL(struct, name, field) {name, T_OBJECT, offsetof(struct, field), 0, NULL} /* NULL is None */
#define NUMBER(name, field) {name, T_LONGLONG, offsetof(Connection, field), 0, NULL}
#define FLAG(struct, name, field) {name, T_BOOL, offsetof(struct, field), 0, NULL}

static int
waiter_traverse(Waiter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->action);
    Py_VISIT(self->context);
    Py_VISIT(self->get_loop);
    Py_VISIT(self->loop);
    Py_VISIT(self->result);
    Py_VISIT(self->wakeup);
    return 0;
}

static int
waiter_clear(Waiter *self)
{
    Py_CLEAR(self->action);
    Py_CLEAR(self->context);
    Py_CLEAR(self->get_loop);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->result);
    Py_CLEAR(self->wakeup);
    return 0;
}

static void
waiter_dealloc(Waiter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    waiter_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef waiter_members[] = {
    FLAG(Waiter, "_asyncio_future_blocking", blocking),
    FLAG(Waiter, "busy", busy),
    OBJECT(Waiter, "_action", action),
    OBJECT(Waiter, "_loop", loop),
    OBJECT(Waiter, "context", context),
    OBJECT(Waiter, "get_loop", get_loop),
    OBJECT(Waiter, "result", result),
    OPTIONAL(Waiter, "wakeup", wakeup),
    {0},
};

static PyType_Slot waiter_slots[] = {
    {Py_tp_doc, "What a waiter keeps."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, waiter_traverse},
    {Py_tp_clear, waiter_clear},
    {Py_tp_dealloc, waiter_dealloc},
    {Py_tp_members, waiter_members},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "asyncserver.net.waiter.WaiterFields",
    .basicsize = sizeof(Waiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = waiter_slots,
};

static int
connection_traverse(Connection *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->buffer);
    Py_VISIT(self->poller);
    Py_VISIT(self->reading);
    Py_VISIT(self->recv);
    Py_VISIT(self->send);
    Py_VISIT(self->watching);
    return 0;
}

static int
connection_clear(Connection *self)
{
    Py_CLEAR(self->buffer);
    Py_CLEAR(self->poller);
    Py_CLEAR(self->reading);
    Py_CLEAR(self->recv);
    Py_CLEAR(self->send);
    Py_CLEAR(self->watching);
    return 0;
}

static void
connection_dealloc(Connection *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    connection_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
connection_get_message_start(Connection *self, void *Py_UNUSED(closure))
{
    return Py_BuildValue("(LL)", self->message_sent, self->message_at);
}

static int
connection_set_message_start(Connection *self, PyObject *value, void *Py_UNUSED(closure))
{
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

static PyMemberDef connection_members[] = {
    OBJECT(Connection, "_buffer", buffer),
    OBJECT(Connection, "_poller", poller),
    OBJECT(Connection, "_reading", reading),
    OBJECT(Connection, "_recv", recv),
    OBJECT(Connection, "_send", send),
    OBJECT(Connection, "_watching", watching),
    NUMBER("_answered", answered),
    NUMBER("_idle_read", idle_read),
    NUMBER("bytes_received", bytes_received),
    NUMBER("bytes_sent", bytes_sent),
    {"_events", T_UINT, offsetof(Connection, events), 0, NULL},
    {"_fd", T_INT, offsetof(Connection, fd), 0, NULL},
    {"_spins", T_INT, offsetof(Connection, spins), 0, NULL},
    FLAG(Connection, "_shared", shared),
    {0},
};

static PyType_Slot connection_slots[] = {
    {Py_tp_doc, "What a connection keeps."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, connection_traverse},
    {Py_tp_clear, connection_clear},
    {Py_tp_dealloc, connection_dealloc},
    {Py_tp_getset, connection_getset},
    {Py_tp_members, connection_members},
    {0, NULL},
};

static PyType_Spec connection_spec = {
    .name = "asyncserver.connections.fields.ConnectionFields",
    .basicsize = sizeof(Connection),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = connection_slots,
};

const Class field_classes[] = {
    {"WaiterFields", &waiter_spec, offsetof(State, waiter)},
    {"ConnectionFields", &connection_spec, offsetof(State, connection)},
    {0},
};
