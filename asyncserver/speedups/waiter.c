/* Waiter: the struct behind WaiterFields (net/waiter.py).
 *
 * Theory of operation. The Python class inherits from it, and finds the attributes under the names that they would have
 * had in __slots__; the methods stay its own. So a waiter means the same, compiled or not, and the C code reaches in a
 * load what costs Python a call. Of connections, see connection.c, this is true as well.
 */
#include "speedups.h"

LIFE(Waiter, waiter, WAITER_OBJECTS, )

#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Waiter, field), 0, NULL},
static PyMemberDef waiter_members[] = {
    WAITER_OBJECTS(MEMBER)
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, blocking), 0, NULL},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Waiter, vectorcall), READONLY, NULL},
    {0},
};

#define IS(name, text) \
    (PyUnicode_GET_LENGTH(name) == sizeof text - 1 && memcmp(PyUnicode_DATA(name), text, sizeof text - 1) == 0)

/* What a task asks for at each wait (Task.__step, asyncio/tasks.py) is found at once, all else as usual. */
PyObject *waiter_getattro(PyObject *self, PyObject *name) {
    if (!PyUnicode_CheckExact(name)) /* of `__getattribute__(waiter, 5)` */
        return PyObject_GenericGetAttr(self, name);
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

static PyType_Slot slots[] = {
    SLOTS(waiter, waiter_new, "What a waiter keeps."), {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, waiter_getattro}, {0, NULL},
};
PyType_Spec waiter_spec = {
    "asyncserver.net.waiter.WaiterFields", sizeof(Waiter), 0, FLAGS | Py_TPFLAGS_HAVE_VECTORCALL, slots,
};
