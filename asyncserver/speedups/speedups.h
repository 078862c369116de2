/* What the files of the extension share. */
#ifndef SPEEDUPS_H
#define SPEEDUPS_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef struct State State;

/* Does the usual case of a Python function, and calls it, `pure`, for any other. Arguments as in PEP 590. */
typedef PyObject *(*Fast)(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* What `accelerate()` finds, by the qualified name of the definition. A table ends with {0}. */
typedef struct { const char *name; Fast call; } Function;
typedef struct { const char *name; PyType_Spec *spec; } Class;

/* Everything that is kept between calls: one for each interpreter, as PEP 630 asks. */
struct State {
    PyTypeObject *method;
};

/* method.c */
extern PyType_Spec method_spec;
PyObject *method_new(PyObject *module, PyObject *pure, Fast call);

/* For a method's arguments that the C code leaves to Python. */
#define call_pure(pure, args, nargs, names) PyObject_Vectorcall(pure, args, (size_t)(nargs), names)

#endif
