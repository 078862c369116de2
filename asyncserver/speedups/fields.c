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
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Waiter, vectorcall), READONLY, NULL},
    {0},
};
#undef MEMBER

#define IS(name, text) \
    (PyUnicode_GET_LENGTH(name) == sizeof text - 1 && memcmp(PyUnicode_DATA(name), text, sizeof text - 1) == 0)

/* What a task asks for at each wait (Task.__step, asyncio/tasks.py) is found at once, all else as usual. */
PyObject *waiter_getattro(PyObject *self, PyObject *name) {
    if (IS(name, "_asyncio_future_blocking"))
        return PyBool_FromLong(((Waiter *)self)->blocking);
    if (IS(name, "get_loop") && ((Waiter *)self)->get_loop != NULL)
        return Py_NewRef(((Waiter *)self)->get_loop);
    if (IS(name, "add_done_callback") && Py_TYPE(self)->tp_base->tp_base == &PyBaseObject_Type) /* not overridden */
        return Py_NewRef(self); /* called, it does just that: no bound method is made for each wait */
    return PyObject_GenericGetAttr(self, name);
}

/* As Waiter.add_done_callback(callback, context=...). */
static PyObject *waiter_vectorcall(PyObject *waiter, PyObject *const *args, size_t nargsf, PyObject *names) {
    Waiter *self = (Waiter *)waiter;
    if (PyVectorcall_NARGS(nargsf) != 1 || names == NULL || PyTuple_GET_SIZE(names) != 1)
        return PyErr_Format(PyExc_TypeError, "add_done_callback() takes a callback, and context=");
    Py_XSETREF(self->wakeup, Py_NewRef(args[0]));
    Py_XSETREF(self->context, Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

static PyObject *waiter_new(PyTypeObject *type, PyObject *args, PyObject *names) {
    Waiter *self = (Waiter *)PyType_GenericNew(type, args, names);
    if (self != NULL)
        self->vectorcall = waiter_vectorcall;
    return (PyObject *)self;
}

static int waiter_setattro(PyObject *self, PyObject *name, PyObject *value) {
    if (value != Py_False || !IS(name, "_asyncio_future_blocking"))
        return PyObject_GenericSetAttr(self, name, value);
    ((Waiter *)self)->blocking = 0;
    return 0;
}

static PyType_Slot waiter_slots[] = {
    SLOTS_WITH(waiter, waiter_new, "What a waiter keeps."), {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, waiter_getattro}, {Py_tp_setattro, waiter_setattro}, {0, NULL},
};
PyType_Spec waiter_spec = {
    "asyncserver.net.waiter.WaiterFields", sizeof(Waiter), 0, FLAGS | Py_TPFLAGS_HAVE_VECTORCALL, waiter_slots,
};

/* -- Connection */

LIFE(Connection, connection, CONNECTION_OBJECTS)

/* Whether a class has a method as it is compiled. */
static int has_ours(State *state, PyTypeObject *type, PyObject *name) {
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);
    int ours = found != NULL && Py_IS_TYPE(found, state->method);
    Py_XDECREF(found);
    PyErr_Clear(); /* what is missing is none of ours */
    return ours;
}

/* Look once at a class that connections have; false if the object has no struct. */
int connection_meet(State *state, PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    if (!PyObject_TypeCheck(object, state->connection))
        return 0;
    state->wakes_readers = has_ours(state, type, N(_on_readable));
    int spins = has_ours(state, type, N(_spun));
    PyObject *limit = PyObject_GetAttr((PyObject *)type, N(_SPIN_LIMIT));
    state->spin_limit = limit != NULL && spins ? PyLong_AsLong(limit) : 0;
    Py_XDECREF(limit);
    PyErr_Clear();
    Py_XSETREF(state->seen, Py_NewRef(type));
    state->seen_version = type->tp_version_tag ? type->tp_version_tag : UINT_MAX; /* 0: it has none, look again */
    return 1;
}

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
