/* Method: a Python function with its usual case in C.
 *
 * Theory of operation. It stands in a class in the function's place. Called, it hands the arguments to the C code,
 * which may hand them on to the function. Everything else is the function's: asked for an attribute that it lacks, it
 * asks the function, so that `help()`, `inspect.signature()` and `inspect.iscoroutinefunction()` say the same. (They
 * take what has `__code__`, `__defaults__` and so on for a function: "duck typing", inspect.py,
 * _signature_is_functionlike.)
 *
 * Py_TPFLAGS_METHOD_DESCRIPTOR lets `stream.receive()` call it without a bound method in between (PEP 590; ceval's
 * LOAD_ATTR_METHOD takes any type that has the flag).
 */
#include "speedups.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Fast call;
    State *state;
    PyObject *module; /* whose state that is */
    PyObject *pure;
} Method;

static PyObject *method_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names) {
    Method *self = (Method *)callable;
    return self->call(self->state, self->pure, args, PyVectorcall_NARGS(nargsf), names);
}

PyObject *method_new(PyObject *module, PyObject *pure, Fast call) {
    State *state = PyModule_GetState(module);
    Method *self = PyObject_GC_New(Method, state->method);
    if (self == NULL)
        return NULL;
    self->vectorcall = method_vectorcall;
    self->call = call;
    self->state = state;
    self->module = Py_NewRef(module);
    self->pure = Py_NewRef(pure);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int method_traverse(Method *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    Py_VISIT(self->pure);
    return 0;
}

/* No tp_clear: a function that is called must be there. The class that holds both breaks the cycle. */
static void method_dealloc(Method *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->module);
    Py_DECREF(self->pure);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *method_get(PyObject *self, PyObject *instance, PyObject *Py_UNUSED(type)) {
    if (instance == NULL || instance == Py_None)
        return Py_NewRef(self);
    return PyMethod_New(self, instance);
}

static PyObject *method_getattro(PyObject *self, PyObject *name) {
    /* The type has this one as well, and it would be found first. */
    if (PyUnicode_CompareWithASCIIString(name, "__module__")) {
        PyObject *found = PyObject_GenericGetAttr(self, name);
        if (found != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
            return found;
        PyErr_Clear();
    }
    return PyObject_GetAttr(((Method *)self)->pure, name);
}

/* Not by method_getattro: help() passes it by. */
static PyObject *method_doc(PyObject *self, void *Py_UNUSED(closure)) {
    return PyObject_GetAttrString(((Method *)self)->pure, "__doc__");
}

/* Pickled as functions are: by name. */
static PyObject *method_reduce(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    return PyObject_GetAttrString(self, "__qualname__");
}

static PyMethodDef method_methods[] = {
    {"__reduce__", method_reduce, METH_NOARGS, NULL},
    {0},
};

static PyMemberDef method_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Method, vectorcall), READONLY, NULL},
    {"__wrapped__", T_OBJECT_EX, offsetof(Method, pure), READONLY, NULL},
    {0},
};

static PyGetSetDef method_getset[] = {
    {"__doc__", method_doc, NULL, NULL, NULL},
    {0},
};

static PyType_Slot method_slots[] = {
    {Py_tp_traverse, method_traverse},
    {Py_tp_dealloc, method_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, method_get},
    {Py_tp_getattro, method_getattro},
    {Py_tp_methods, method_methods},
    {Py_tp_members, method_members},
    {Py_tp_getset, method_getset},
    {0, NULL},
};

PyType_Spec method_spec = {
    .name = "asyncserver.speedups.Method",
    .basicsize = sizeof(Method),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, /* immutable: LOAD_ATTR insists */
    .slots = method_slots,
};
